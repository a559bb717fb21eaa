"""`gpuhub grant transfer|adjust|carry-over`, `gpuhub program adjust|change`, `gpuhub policy`, `gpuhub transfers`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated
from uuid import uuid4

import typer

from deploy.commands.account import grant_table
from deploy.commands.grants import (
    DRY_RUN,
    Children,
    DryRun,
    Evidence,
    GrantId,
    Hours,
    Json,
    Key,
    Tranche,
    Why,
    children_of,
    grant_app,
    program_app,
    tell_grant,
)
from deploy.durations import duration_text
from deploy.moments import maybe_moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, console, hours, json_out, moment, table
from quota.client.paging import every
from quota.schemas.ledger import TransferType
from quota.schemas.policies import GrantPolicy, PolicyDocument, PolicyPut
from quota.schemas.programs import (
    Adjustment,
    CarryOver,
    GrantMove,
    GrantTransfer,
    Program,
    ProgramChange,
)

To = Annotated[str, typer.Option("--to", help="The grant that gets the hours.")]
Proof = Annotated[str, typer.Option("--evidence", help="What the correction rests on.")]
Signed = Annotated[str, typer.Option("--hours", help="GPU hours to add, or, with a minus, to take away.")]
ProgramId = Annotated[str, typer.Argument(help="The programme's id.")]

policy_app = typer.Typer(no_args_is_help=True, help="The rules that programmes grant under.")


def register(app: typer.Typer) -> None:
    """Add the commands that are not under `grant` and `program`."""
    app.add_typer(policy_app, name="policy", rich_help_panel=OPERATORS)
    app.command("transfers")(list_transfers)


@grant_app.command("transfer")
def transfer(
    grant_id: GrantId,
    to: To,
    gpu_hours: Hours,
    reason: Why,
    child: Children = None,
    tranche: Tranche = None,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Move unused hours to another grant of the same programme."""
    asked = {"to_grant_id": to, "gpu_hours": gpu_hours, "reason": reason, "evidence": evidence}
    body = GrantTransfer.model_validate(asked | {"children": children_of(child), "tranche": tranche})
    with service() as client:
        _tell_move(client.transfer_hours(grant_id, body, key or uuid4().hex, dry_run), dry_run, as_json)


@grant_app.command("carry-over")
def carry_over(
    grant_id: GrantId,
    to: To,
    gpu_hours: Hours,
    reason: Why,
    tranche: Tranche = None,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give expired hours of a grant to another one of the same programme that has not ended."""
    asked = {"to_grant_id": to, "gpu_hours": gpu_hours, "reason": reason, "evidence": evidence}
    with service() as client:
        body = CarryOver.model_validate(asked | {"tranche": tranche})
        _tell_move(client.carry_over_hours(grant_id, body, key or uuid4().hex, dry_run), dry_run, as_json)


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
    tell_grant(changed, as_json, dry_run)


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
        _tell_program(client.adjust_program(program_id, body, key or uuid4().hex, dry_run), dry_run, as_json)


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
        _tell_program(client.change_program(program_id, body), False, as_json)


@policy_app.command("set")
def put_policy(
    policy_id: Annotated[str, typer.Argument(help="Its name, such as poc.")],
    reason: Why,
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME=VALUE, such as overdraft_thousandths=250; what is not named is the default. Names: "
            + ", ".join(GrantPolicy.model_fields)
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a policy or change it whole; grants keep what they were awarded under."""
    body = PolicyPut.model_validate({"policy": _rules(rules or []), "reason": reason})
    with service() as client:
        stored = client.put_policy(policy_id, body)
    if as_json:
        json_out(stored)
    else:
        console().print(policy_table([stored]))


@policy_app.command("list")
def list_policies(as_json: Json = False) -> None:
    """List policies with their rules."""
    with service() as client:
        found = list(every(client.list_policies))
    if as_json:
        json_out(found)
        return
    console().print(policy_table(found))


def policy_table(policies: list[PolicyDocument]) -> object:
    """Policies with their rules as people say them."""
    columns = (
        "policy",
        ">version",
        ">overdraft",
        "when a grant ends",
        ">notice",
        ">carry-over",
        ">refund cap",
        "changed (KST)",
    )
    return table(
        "",
        columns,
        [
            (item.id, str(item.version), *_rule_cells(item.policy), moment(item.changed_at or None))
            for item in policies
        ],
    )


def _rule_cells(policy: GrantPolicy) -> tuple[str, ...]:
    return (
        f"{policy.overdraft_thousandths / 10:g} %",
        policy.when_grant_ends.value,
        duration_text(policy.stop_notice_s),
        f"{policy.carry_over_thousandths / 10:g} %",
        duration_text(policy.refund_cap_ms / 1000),
    )


def list_transfers(
    account: Annotated[str | None, typer.Option(help="Only what touched this account.")] = None,
    grant: Annotated[str | None, typer.Option(help="Only what touched this grant.")] = None,
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    kind: Annotated[TransferType | None, typer.Option("--type", help="Only this type.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From this moment on: '2026-11-22 18:00' in Seoul, or RFC 3339.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this moment.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List the ledger's transfers with who moved what and why, oldest first."""
    span = {"since": maybe_moment_ms("--since", since), "until": maybe_moment_ms("--until", until)}
    with service() as client:
        listed = every(
            client.list_transfers, account_id=account, grant_id=grant, job_id=job, type=kind, **span
        )
        found = list(islice(listed, limit))
    if as_json:
        json_out(found)
        return
    columns = ("at (KST)", "type", ">GPU-h", "accounts", "by", "reason")
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


def _rules(given: list[str]) -> dict[str, int | str]:
    """Rules as typed; their values are judged by the schema."""
    known = GrantPolicy.model_fields
    rules: dict[str, int | str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or name not in known:
            raise UsageTrouble(f"rule {text!r} is not NAME=VALUE with one of these names: {', '.join(known)}")
        rules[name] = int(value) if value.isdecimal() else value
    return rules


def _tell_move(moved: GrantMove, dry_run: bool, as_json: bool) -> None:
    if as_json:
        json_out(moved)
        return
    if dry_run:
        typer.echo(DRY_RUN)
    console().print(grant_table([moved.source, moved.target]))


def _tell_program(program: Program, dry_run: bool, as_json: bool) -> None:
    if as_json:
        json_out(program)
        return
    if dry_run:
        typer.echo(DRY_RUN)
    typer.echo(
        f"{program.id} ({program.name}) has {hours(program.budget_gpu_us)} GPU-h, {hours(program.remaining_gpu_us)}"
        f" of them left to award, under policy {program.policy_id}"
    )
