"""`gpuhub grant` and `gpuhub program`: budgets and what is awarded from them (operators)."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer

from deploy.commands.account import grant_table
from deploy.commands.limits import tranche_parts
from deploy.durations import duration_s, duration_text
from deploy.moments import maybe_moment_ms, moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table
from quota.client import QuotaClient
from quota.client.paging import every
from quota.schemas.policies import GrantPolicy, WhenGrantEnds
from quota.schemas.programs import Award, Grant, GrantCut, GrantState, NewProgram, TopUp

Json = Annotated[bool, JsonOption]
Hours = Annotated[str, typer.Option("--hours", help="GPU hours of the reference GPU, such as 1500 or 0.5.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
Key = Annotated[str | None, typer.Option(help="Idempotency-Key: the same request twice is done once.")]
Evidence = Annotated[str | None, typer.Option(help="What it rests on: a decision, a paper and its hash.")]
Tranche = Annotated[
    int | None, typer.Option(min=1, help="The tranche they come into; default: the one released last.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and do nothing.")]
Children = Annotated[
    list[str] | None,
    typer.Option("--child", help="ACCOUNT=HOURS: a share or tranche that loses hours too; repeatable."),
]
DRY_RUN = "dry run, nothing was done; it would be:"
GrantId = Annotated[str, typer.Argument(help="The grant's id; see `gpuhub grant list`.")]

grant_app = typer.Typer(no_args_is_help=True, help="Award, change, move and list grants.")
program_app = typer.Typer(no_args_is_help=True, help="Open, correct and list programmes.")


@grant_app.command("award")
def award(
    organization: Annotated[str, typer.Argument(help="Who gets it.")],
    gpu_hours: Hours,
    reason: Why,
    program: Annotated[str, typer.Option(help="The programme whose budget pays.")],
    term: Annotated[str, typer.Option(help="How long it lasts: 90d; or give --ends-at.")] = "90d",
    starts_at: Annotated[
        str | None, typer.Option(help="'2026-12-01 00:00' in Seoul, or RFC 3339; default now.")
    ] = None,
    ends_at: Annotated[str | None, typer.Option(help="Instead of --term, written like --starts-at.")] = None,
    max_gpus: Annotated[int | None, typer.Option(help="GPUs it may have in use at once.", min=1)] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="HOURS:LABEL of a tranche; once per tranche, in order of release."),
    ] = None,
    first_locked: Annotated[bool, typer.Option("--first-locked", help="Lock the first tranche too.")] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Award GPU hours of a programme to an organization for a term."""
    with service() as client:
        start_ms = maybe_moment_ms("--starts-at", starts_at)
        body = Award.model_validate(
            {
                "program_id": program,
                "organization_id": organization,
                "gpu_hours": gpu_hours,
                "starts_at": start_ms,
                "ends_at": _end_ms(client, start_ms, term, ends_at),
                "max_gpus": max_gpus,
                "tranches": tranche_parts(parts or []),
                "first_tranche_released": not first_locked,
                "reason": reason,
            }
        )
        made = client.award_grant(body, key or uuid4().hex)
    tell_grant(made, as_json)
    if not as_json and (body.tranches or body.max_gpus):
        typer.echo(f"its tranches and cap: gpuhub limits {made.id}")


@grant_app.command("top-up")
def top_up(
    grant_id: GrantId,
    gpu_hours: Hours,
    reason: Why,
    tranche: Tranche = None,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Add hours of the programme's budget to a grant."""
    asked = {"gpu_hours": gpu_hours, "reason": reason, "evidence": evidence, "tranche": tranche}
    with service() as client:
        changed = client.top_up_grant(grant_id, TopUp.model_validate(asked), key or uuid4().hex, dry_run)
    tell_grant(changed, as_json, dry_run)


@grant_app.command("cut")
def cut(
    grant_id: GrantId,
    gpu_hours: Hours,
    reason: Why,
    child: Children = None,
    evidence: Evidence = None,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Take unused hours of a grant back into the programme's budget."""
    asked = {"gpu_hours": gpu_hours, "reason": reason, "evidence": evidence, "children": children_of(child)}
    with service() as client:
        changed = client.cut_grant(grant_id, GrantCut.model_validate(asked), key or uuid4().hex, dry_run)
    tell_grant(changed, as_json, dry_run)


@grant_app.command("show")
def show_grant(grant_id: GrantId, as_json: Json = False) -> None:
    """Show one grant: balance, term, cap, and the rules it was awarded under."""
    with service() as client:
        found = client.read_grant(grant_id)
    if as_json:
        json_out(found)
        return
    policy = found.policy
    rows = [
        ("term", f"{moment(found.starts_at)} to {moment(found.ends_at)} (KST)"),
        ("cap on GPUs in use", "none" if found.max_gpus is None else str(found.max_gpus)),
        ("overdraft", f"{hours(found.overdraft_gpu_us)} GPU-h more than granted"),
        ("when it ends", _ending_text(policy)),
        ("carry-over", f"{policy.carry_over_thousandths / 10:g} % of what expires"),
        ("back after faults", f"at most {duration_text(policy.refund_cap_ms / 1000)} of each job"),
        ("expired", moment(found.expired_at)),
    ]
    console().print(grant_table([found]))
    console().print(table("", ("", ""), rows))
    typer.echo(f"shares and tranches: gpuhub limits {found.id}; every charge: gpuhub statement {found.id}")


@grant_app.command("list")
def list_grants(
    organization: Annotated[str | None, typer.Option(help="Only this organization's.")] = None,
    program: Annotated[str | None, typer.Option(help="Only this programme's.")] = None,
    state: Annotated[GrantState | None, typer.Option(help="Only those in this part of their term.")] = None,
    as_json: Json = False,
) -> None:
    """List grants with their balances."""
    with service() as client:
        listed = every(client.list_grants, organization_id=organization, program_id=program, state=state)
        _tell_grants(list(listed), as_json)


@program_app.command("create")
def create_program(
    program_id: Annotated[str, typer.Argument(help="A short name, such as ax-2027.")],
    name: Annotated[str, typer.Option(help="Its full name.")],
    gpu_hours: Hours,
    policy: Annotated[str, typer.Option(help="What its grants are awarded under.")] = "default",
    reason: Why = "programme opened",
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Open a programme and put its budget on its account."""
    with service() as client:
        asked = {"id": program_id, "name": name, "budget_gpu_hours": gpu_hours, "reason": reason}
        made = client.create_program(NewProgram.model_validate(asked | {"policy_id": policy}), key)
    if as_json:
        json_out(made)
    else:
        typer.echo(f"{made.id} opened with {hours(made.budget_gpu_us)} GPU-h")


@program_app.command("list")
def list_programs(as_json: Json = False) -> None:
    """List programmes: budget = awarded + remaining + expired."""
    with service() as client:
        found = list(every(client.list_programs))
    if as_json:
        json_out(found)
        return
    columns = ("programme", "name", ">budget", ">awarded", ">remaining", ">expired", "policy", "opened")
    rows = [
        (
            program.id,
            program.name,
            hours(program.budget_gpu_us),
            hours(program.awarded_gpu_us),
            hours(program.remaining_gpu_us),
            hours(program.expired_gpu_us),
            program.policy_id,
            moment(program.created_at),
        )
        for program in found
    ]
    console().print(table("GPU hours of the reference GPU", columns, rows))


def children_of(given: list[str] | None) -> list[dict[str, str]]:
    """Shares and tranches from `ACCOUNT=HOURS` as typed. Raises UsageTrouble."""
    children = []
    for text in given or []:
        account, sign, gpu_hours = text.rpartition("=")
        if not sign or not account or not gpu_hours:
            raise UsageTrouble(f"--child {text!r} is not ACCOUNT=HOURS, such as 'tranche:GRANT:2=100'")
        children.append({"account_id": account, "gpu_hours": gpu_hours})
    return children


def _ending_text(policy: GrantPolicy) -> str:
    if policy.when_grant_ends is WhenGrantEnds.STOP_AT_END:
        return f"what runs is stopped; told {duration_text(policy.stop_notice_s)} before"
    return "what runs may finish; what is free expires"


def _end_ms(client: QuotaClient, start_ms: int | None, term: str, ends_at: str | None) -> int:
    if ends_at is not None:
        return moment_ms("--ends-at", ends_at)
    try:
        term_ms = duration_s(term) * 1000
    except ValueError as error:
        raise UsageTrouble(f"--term: {error}") from error
    # The hub's clock, not ours: it may run faster than the wall.
    return (client.read_clock().now if start_ms is None else start_ms) + term_ms


def tell_grant(grant: Grant, as_json: bool, dry_run: bool = False) -> None:
    """A grant as it is now, or, after a dry run, as it would be."""
    if as_json:
        json_out(grant)
        return
    if dry_run:
        typer.echo(DRY_RUN)
    console().print(grant_table([grant]))


def _tell_grants(grants: list[Grant], as_json: bool) -> None:
    if as_json:
        json_out(grants)
    elif grants:
        console().print(grant_table(grants))
    else:
        typer.echo("no grants")
