"""`gpuhub grant` and `gpuhub program`: budgets and what is awarded from them (operators)."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer

from deploy.commands.account import all_grants, grant_table
from deploy.commands.limits import tranche_parts
from deploy.durations import duration_s
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table
from quota.client import QuotaClient
from quota.client.paging import every
from quota.clock import instant_ms
from quota.schemas.programs import Award, Grant, GrantChange, NewProgram

Json = Annotated[bool, JsonOption]
Hours = Annotated[str, typer.Option("--hours", help="GPU hours of the reference GPU, such as 1500 or 0.5.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
Key = Annotated[str | None, typer.Option(help="Idempotency-Key: the same request twice is done once.")]
GrantId = Annotated[str, typer.Argument(help="The grant's id; see `gpuhub grant list`.")]

grant_app = typer.Typer(no_args_is_help=True, help="Award, change and list grants (operators).")
program_app = typer.Typer(no_args_is_help=True, help="Open and list programmes (operators).")


@grant_app.command("award")
def award(
    organization: Annotated[str, typer.Argument(help="Who gets it.")],
    gpu_hours: Hours,
    reason: Why,
    program: Annotated[str, typer.Option(help="The programme whose budget pays.")],
    term: Annotated[str, typer.Option(help="How long it lasts: 90d; or give --ends-at.")] = "90d",
    starts_at: Annotated[str | None, typer.Option(help="RFC 3339; default now.")] = None,
    ends_at: Annotated[str | None, typer.Option(help="RFC 3339, such as 2027-02-28T23:59:59+09:00.")] = None,
    max_gpus: Annotated[int | None, typer.Option(help="GPUs it may have in use at once.", min=1)] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="HOURS:LABEL of a tranche; once per tranche, in order of release."),
    ] = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Award GPU hours of a programme to an organization for a term."""
    with service() as client:
        start_ms = None if starts_at is None else _instant_ms("--starts-at", starts_at)
        body = Award.model_validate(
            {
                "program_id": program,
                "organization_id": organization,
                "gpu_hours": gpu_hours,
                "starts_at": start_ms,
                "ends_at": _end_ms(client, start_ms, term, ends_at),
                "max_gpus": max_gpus,
                "tranches": tranche_parts(parts or []),
                "reason": reason,
            }
        )
        _tell_grant(client.award_grant(body, key or uuid4().hex), as_json)


@grant_app.command("top-up")
def top_up(grant_id: GrantId, gpu_hours: Hours, reason: Why, key: Key = None, as_json: Json = False) -> None:
    """Add hours of the programme's budget to a grant."""
    with service() as client:
        _tell_grant(client.top_up_grant(grant_id, _change(gpu_hours, reason), key or uuid4().hex), as_json)


@grant_app.command("cut")
def cut(grant_id: GrantId, gpu_hours: Hours, reason: Why, key: Key = None, as_json: Json = False) -> None:
    """Take unused hours of a grant back into the programme's budget."""
    with service() as client:
        _tell_grant(client.cut_grant(grant_id, _change(gpu_hours, reason), key or uuid4().hex), as_json)


@grant_app.command("list")
def list_grants(
    organization: Annotated[str | None, typer.Option(help="Only this organization's.")] = None,
    as_json: Json = False,
) -> None:
    """List grants with their balances."""
    with service() as client:
        _tell_grants(all_grants(client, organization), as_json)


@program_app.command("create")
def create_program(
    program_id: Annotated[str, typer.Argument(help="A short name, such as ax-2027.")],
    name: Annotated[str, typer.Option(help="Its full name.")],
    gpu_hours: Hours,
    reason: Why = "programme opened",
    as_json: Json = False,
) -> None:
    """Open a programme and put its budget on its account."""
    with service() as client:
        asked = {"id": program_id, "name": name, "budget_gpu_hours": gpu_hours, "reason": reason}
        made = client.create_program(NewProgram.model_validate(asked))
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


def _change(gpu_hours: str, reason: str) -> GrantChange:
    return GrantChange.model_validate({"gpu_hours": gpu_hours, "reason": reason})


def _end_ms(client: QuotaClient, start_ms: int | None, term: str, ends_at: str | None) -> int:
    if ends_at is not None:
        return _instant_ms("--ends-at", ends_at)
    try:
        term_ms = duration_s(term) * 1000
    except ValueError as error:
        raise UsageTrouble(f"--term: {error}") from error
    # The hub's clock, not ours: it may run faster than the wall.
    return (client.read_clock().now if start_ms is None else start_ms) + term_ms


def _instant_ms(option: str, text: str) -> int:
    try:
        return instant_ms(text)
    except ValueError as error:
        raise UsageTrouble(f"{option}: {error}") from error


def _tell_grant(grant: Grant, as_json: bool) -> None:
    if as_json:
        json_out(grant)
    else:
        console().print(grant_table([grant]))


def _tell_grants(grants: list[Grant], as_json: bool) -> None:
    if as_json:
        json_out(grants)
    elif grants:
        console().print(grant_table(grants))
    else:
        typer.echo("no grants")
