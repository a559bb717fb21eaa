"""`gpuhub grant transfer|adjust|carry-over`, `gpuhub program adjust|change`, `gpuhub policy`, `gpuhub transfers`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated
from uuid import uuid4

import typer

from deploy.commands.account import grant_table
from deploy.commands.grants import GrantId, Hours, Json, Key, Why, grant_app, program_app
from deploy.session import UsageTrouble, service
from deploy.show import console, hours, json_out, moment, table
from quota.client.paging import every
from quota.clock import instant_ms
from quota.schemas.ledger import TransferType
from quota.schemas.policies import PolicyPut
from quota.schemas.programs import (
    Adjustment,
    CarryOver,
    GrantMove,
    GrantTransfer,
    Program,
    ProgramChange,
)

To = Annotated[str, typer.Option("--to", help="The grant that gets the hours.")]
Evidence = Annotated[str | None, typer.Option(help="What it rests on: a decision, a paper and its hash.")]
Proof = Annotated[str, typer.Option("--evidence", help="What the correction rests on.")]
Signed = Annotated[str, typer.Option("--hours", help="GPU hours to add, or, with a minus, to take away.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and do nothing.")]
Children = Annotated[
    list[str] | None,
    typer.Option("--child", help="ACCOUNT=HOURS: a share or tranche that is cut with the grant."),
]
ProgramId = Annotated[str, typer.Argument(help="The programme's id.")]

policy_app = typer.Typer(no_args_is_help=True, help="What programmes grant under (operators).")


def register(app: typer.Typer) -> None:
    """Add the commands that are not under `grant` and `program`."""
    app.add_typer(policy_app, name="policy")
    app.command("transfers")(list_transfers)


@grant_app.command("transfer")
def transfer(
    grant_id: GrantId,
    to: To,
    gpu_hours: Hours,
    reason: Why,
    child: Children = None,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Move unused hours to another grant of the same programme."""
    asked = {"to_grant_id": to, "gpu_hours": gpu_hours, "reason": reason, "evidence": evidence}
    body = GrantTransfer.model_validate(asked | {"children": _children(child or [])})
    with service() as client:
        _tell_move(client.transfer_hours(grant_id, body, key or uuid4().hex, dry_run), as_json)


@grant_app.command("carry-over")
def carry_over(
    grant_id: GrantId,
    to: To,
    gpu_hours: Hours,
    reason: Why,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give expired hours of a grant to another one of the same programme that has not ended."""
    asked = {"to_grant_id": to, "gpu_hours": gpu_hours, "reason": reason, "evidence": evidence}
    with service() as client:
        body = CarryOver.model_validate(asked)
        _tell_move(client.carry_over_hours(grant_id, body, key or uuid4().hex, dry_run), as_json)


@grant_app.command("adjust")
def adjust_grant(
    grant_id: GrantId,
    gpu_hours: Signed,
    reason: Why,
    evidence: Proof,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Correct what a grant was given, on evidence."""
    body = _adjustment(gpu_hours, reason, evidence)
    with service() as client:
        changed = client.adjust_grant(grant_id, body, key or uuid4().hex, dry_run)
    if as_json:
        json_out(changed)
    else:
        console().print(grant_table([changed]))


@program_app.command("adjust")
def adjust_program(
    program_id: ProgramId,
    gpu_hours: Signed,
    reason: Why,
    evidence: Proof,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Correct a programme's budget, on evidence."""
    body = _adjustment(gpu_hours, reason, evidence)
    with service() as client:
        _tell_program(client.adjust_program(program_id, body, key or uuid4().hex, dry_run), as_json)


@program_app.command("change")
def change_program(
    program_id: ProgramId,
    reason: Why,
    name: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    policy: Annotated[str | None, typer.Option(help="The policy of grants awarded from now on.")] = None,
    as_json: Json = False,
) -> None:
    """Rename a programme or give it another policy; its present grants keep theirs."""
    body = ProgramChange.model_validate({"name": name, "policy_id": policy, "reason": reason})
    with service() as client:
        _tell_program(client.change_program(program_id, body), as_json)


@policy_app.command("set")
def put_policy(
    policy_id: Annotated[str, typer.Argument(help="Its name, such as poc.")],
    reason: Why,
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME=VALUE, such as overdraft_thousandths=250; what is not named is the default."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a policy or change it whole; grants keep what they were awarded under."""
    policy = {name: _value(value) for name, value in (_pair(rule) for rule in rules or [])}
    with service() as client:
        stored = client.put_policy(policy_id, PolicyPut.model_validate({"policy": policy, "reason": reason}))
    if as_json:
        json_out(stored)
    else:
        typer.echo(f"{stored.id} version {stored.version}: {stored.policy.model_dump_json()}")


@policy_app.command("list")
def list_policies(as_json: Json = False) -> None:
    """List policies with their rules."""
    with service() as client:
        found = list(every(client.list_policies))
    if as_json:
        json_out(found)
        return
    rows = [
        (item.id, str(item.version), item.policy.model_dump_json(), moment(item.changed_at)) for item in found
    ]
    console().print(table("policies", ("policy", ">version", "rules", "changed"), rows))


def list_transfers(
    account: Annotated[str | None, typer.Option(help="Only what touched this account.")] = None,
    grant: Annotated[str | None, typer.Option(help="Only what touched this grant.")] = None,
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    kind: Annotated[TransferType | None, typer.Option("--type", help="Only this type.")] = None,
    since: Annotated[str | None, typer.Option(help="RFC 3339: from this moment on.")] = None,
    until: Annotated[str | None, typer.Option(help="RFC 3339: before this moment.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List the ledger's transfers with who moved what and why, oldest first."""
    span = {"since": _instant_ms("--since", since), "until": _instant_ms("--until", until)}
    with service() as client:
        listed = every(
            client.list_transfers, account_id=account, grant_id=grant, job_id=job, type=kind, **span
        )
        found = list(islice(listed, limit))
    if as_json:
        json_out(found)
        return
    columns = ("at", "type", ">GPU-h", "accounts", "by", "reason")
    rows = [
        (
            moment(item.at),
            item.type.value,
            hours(item.amount_gpu_us),
            "\n".join(leg.account_id for leg in item.legs),
            item.actor,
            item.reason,
        )
        for item in found
    ]
    console().print(table("transfers", columns, rows))


def _adjustment(gpu_hours: str, reason: str, evidence: str) -> Adjustment:
    asked = {"gpu_hours": gpu_hours, "reason": reason, "evidence": evidence}
    return Adjustment.model_validate(asked)


def _children(pairs: list[str]) -> list[dict[str, str]]:
    return [{"account_id": name, "gpu_hours": amount} for name, amount in map(_pair, pairs)]


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UsageTrouble(f"{text!r} is not NAME=VALUE")
    return name, value


def _value(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _instant_ms(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return instant_ms(text)
    except ValueError as error:
        raise UsageTrouble(f"{option}: {error}") from error


def _tell_move(moved: GrantMove, as_json: bool) -> None:
    if as_json:
        json_out(moved)
    else:
        console().print(grant_table([moved.source, moved.target]))


def _tell_program(program: Program, as_json: bool) -> None:
    if as_json:
        json_out(program)
    else:
        typer.echo(f"{program.id} ({program.name}) has {hours(program.budget_gpu_us)} GPU-h")
