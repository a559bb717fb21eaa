"""`gpuhub idle`: jobs that hold GPUs without using them, the rules for them, and exemptions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from deploy.durations import duration_text
from deploy.moments import MOMENT_HELP, moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, json_out, moment, table
from quota.client.paging import every
from quota.schemas.idle import (
    Exemption,
    ExemptionEnd,
    ExemptionKind,
    IdlePolicyDocument,
    IdlePolicyPut,
    NewExemption,
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
OwnRules = Annotated[
    str | None,
    typer.Option("--program", help="A programme's own rules; default: the hub's."),
]

idle_app = typer.Typer(
    no_args_is_help=True, help="Jobs that hold GPUs without using them: found, warned, stopped, exempted."
)


@idle_app.command("list")
def list_jobs(as_json: Json = False) -> None:
    """List running attempts that are idle, partly idle, little used or not measured."""
    with service() as client:
        found = list(every(client.list_idle_jobs))
    if as_json:
        json_out(found)
        return
    columns = (
        "job",
        "organization",
        "found",
        ">idle GPUs",
        ">used",
        "no work since (KST)",
        "stop (KST)",
        "exempt until",
    )
    rows = [
        (
            f"{one.job_id}-{one.attempt}",
            one.organization_id,
            one.state.value,
            f"{one.idle_gpus} of {one.gpus}",
            "" if one.utilization_thousandths is None else f"{one.utilization_thousandths / 10:g} %",
            moment(one.since),
            moment(one.stop_at),
            moment(one.exempt_until),
        )
        for one in found
    ]
    console().print(table("", columns, rows) if rows else "every running job that is measured works")


@idle_app.command("policy")
def show(program: OwnRules = None, as_json: Json = False) -> None:
    """Show when idle jobs are warned and stopped."""
    with service() as client:
        found = client.read_idle_policy()
    _tell(found, program, as_json)


@idle_app.command("set")
def put(
    reason: Why,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            help="NAME=VALUE, such as mode=warn or batch.sliding.stop_s=14400; see `gpuhub idle policy`."
        ),
    ] = None,
    program: OwnRules = None,
    own: Annotated[
        bool, typer.Option("--own/--hubs", help="With --program: rules of its own, or the hub's again.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Change some of it; what is not named stays. A programme's own rules begin as a copy of the hub's."""
    with service() as client:
        found = client.read_idle_policy()
        wanted = found.policy.model_dump(mode="json")
        if program is None:
            _change(wanted, changes or [])
        elif not own:
            wanted["programs"].pop(program, None)
        else:
            hubs = {name: value for name, value in wanted.items() if name != "programs"}
            _change(wanted["programs"].setdefault(program, json.loads(json.dumps(hubs))), changes or [])
        body = IdlePolicyPut.model_validate_json(json.dumps({"policy": wanted, "reason": reason}))
        stored = client.put_idle_policy(body, found.etag)
    _tell(stored, program, as_json)


@idle_app.command("exempt")
def exempt(
    kind: Annotated[ExemptionKind, typer.Argument(help="Whose jobs.")],
    subject: Annotated[str, typer.Argument(help="The id of the job, organization, program or grant.")],
    until: Annotated[str, typer.Option("--until", help=f"Until when: {MOMENT_HELP}.")],
    reason: Why,
    as_json: Json = False,
) -> None:
    """Keep jobs from being warned and stopped for a while."""
    body = NewExemption(kind=kind, subject=subject, expires_at=moment_ms("--until", until), reason=reason)
    with service() as client:
        made = client.create_idle_exemption(body)
    json_out(made) if as_json else typer.echo(_line(made))


@idle_app.command("exemptions")
def exemptions(as_json: Json = False) -> None:
    """List exemptions, newest first, those that are over included."""
    with service() as client:
        found = list(every(client.list_idle_exemptions))
    if as_json:
        json_out(found)
        return
    columns = ("id", "whose", "until (KST)", "ended (KST)", "by", "reason")
    rows = [
        (
            one.id,
            f"{one.kind.value} {one.subject}",
            moment(one.expires_at),
            moment(one.ended_at),
            one.created_by,
            one.reason,
        )
        for one in found
    ]
    console().print(table("", columns, rows))


@idle_app.command("end-exemption")
def end_exemption(
    exemption_id: Annotated[str, typer.Argument(help="The exemption's id.")],
    reason: Why,
    as_json: Json = False,
) -> None:
    """End an exemption before its time."""
    with service() as client:
        done = client.end_idle_exemption(exemption_id, ExemptionEnd(reason=reason))
    json_out(done) if as_json else typer.echo(_line(done))


def _change(rules: dict[str, Any], changes: list[str]) -> None:
    """Put what was typed into the document; the values are judged by the schema."""
    names = [name for name, _ in _flat("", rules)]
    for text in changes:
        name, sign, value = text.partition("=")
        if not sign or name not in names:
            raise UsageTrouble(f"{text!r} is not NAME=VALUE with one of these names: {', '.join(names)}")
        *path, last = name.split(".")
        inner = rules
        for part in path:
            inner = inner[part]
        inner[last] = int(value) if value.isdecimal() and value.isascii() else value


def _tell(found: IdlePolicyDocument, program: str | None, as_json: bool) -> None:
    if as_json:
        json_out(found)
        return
    changed = moment(found.changed_at) if found.changed_at else "never"
    rules = found.policy if program is None else found.policy.for_program(program)
    own = program in found.policy.programs
    whose = "" if program is None else f"{program}: its own" if own else f"{program}: the hub's"
    rows = [(name, _text(name, value)) for name, value in _flat("", rules.model_dump(mode="json"))]
    title = f"version {found.version}, changed (KST): {changed}"
    if whose:
        typer.echo(whose)
    console().print(table(title, ("what", ">value"), rows))
    if program is None and found.policy.programs:
        typer.echo(f"programmes with rules of their own: {', '.join(sorted(found.policy.programs))}")


def _flat(before: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name == "programs":
            continue
        if isinstance(value, dict):
            yield from _flat(f"{before}{name}.", value)
        else:
            yield f"{before}{name}", value


def _text(name: str, value: object) -> str:
    return (
        f"{value} ({duration_text(value)})" if name.endswith("_s") and isinstance(value, int) else str(value)
    )


def _line(one: Exemption) -> str:
    ended = "" if one.ended_at is None else f", ended {moment(one.ended_at)}"
    return f"{one.id}: {one.kind.value} {one.subject} is exempt until {moment(one.expires_at)} (KST){ended}"


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(idle_app, name="idle", rich_help_panel=OPERATORS)
