"""`gpuhub caps`: how many GPUs an organization may keep, how large and long a job may be, how many may wait; of the
hub, of an organization, of a programme."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from deploy.durations import duration_text
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, json_out, moment, table
from quota.schemas.caps import (
    CapsDocument,
    CapsPut,
    HubCaps,
    OrganizationCaps,
    OrganizationCapsDocument,
    OrganizationCapsPut,
    ProgramBound,
    ProgramCaps,
    ProgramCapsDocument,
    ProgramCapsPut,
)

Shown = CapsDocument | OrganizationCapsDocument | ProgramCapsDocument

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
NAMES = tuple(HubCaps.model_fields)
OWN_NAMES = tuple(OrganizationCaps.model_fields)
PROGRAM_NAMES = tuple(ProgramCaps.model_fields)
Organization = Annotated[
    str | None,
    typer.Option("--organization", help="An organization's own caps; default: the hub's."),
]
Program = Annotated[
    str | None, typer.Option("--program", help="A programme's caps on jobs that it may pay for.")
]
Changes = Annotated[
    list[str],
    typer.Argument(
        help="NAME=VALUE, such as organization_pool_thousandths=250 or job_gpus=none. Names of the hub's: "
        + ", ".join(NAMES)
        + "; of an organization's: "
        + ", ".join(OWN_NAMES)
        + "; of a programme's: "
        + ", ".join(PROGRAM_NAMES)
    ),
]

caps_app = typer.Typer(no_args_is_help=True, help="GPUs at once, size and walltime of jobs, jobs that wait.")


@caps_app.command("show")
def show(organization: Organization = None, program: Program = None, as_json: Json = False) -> None:
    """Show the hub's caps, an organization's with those in effect, or a programme's; a member names its own
    organization."""
    _one_of(organization, program)
    with service() as client:
        found: Shown
        if program is not None:
            found = client.read_program_caps(program)
        elif organization is not None:
            found = client.read_organization_caps(organization)
        else:
            found = client.read_caps()
    _tell(found, as_json)


@caps_app.command("set")
def put(
    changes: Changes,
    reason: Why,
    organization: Organization = None,
    program: Program = None,
    as_json: Json = False,
) -> None:
    """Change some of them; what is not named stays. They bind from the next start and submission on."""
    _one_of(organization, program)
    with service() as client:
        stored: Shown
        if program is not None:
            its_own = client.read_program_caps(program)
            wanted = _changed(its_own.caps.model_dump(mode="json"), changes, PROGRAM_NAMES)
            of_program = ProgramCapsPut.model_validate_json(json.dumps({"caps": wanted, "reason": reason}))
            stored = client.put_program_caps(program, of_program, its_own.etag)
        elif organization is None:
            hub = client.read_caps()
            wanted = _changed(hub.caps.model_dump(mode="json"), changes, NAMES)
            body = CapsPut.model_validate_json(json.dumps({"caps": wanted, "reason": reason}))
            stored = client.put_caps(body, hub.etag)
        else:
            own = client.read_organization_caps(organization)
            wanted = _changed(own.caps.model_dump(mode="json"), changes, OWN_NAMES)
            its = OrganizationCapsPut.model_validate_json(json.dumps({"caps": wanted, "reason": reason}))
            stored = client.put_organization_caps(organization, its, own.etag)
    _tell(stored, as_json)


def _one_of(organization: str | None, program: str | None) -> None:
    if organization is not None and program is not None:
        raise UsageTrouble("name --organization or --program, not both")


def _changed(caps: dict[str, Any], changes: Iterable[str], names: tuple[str, ...]) -> dict[str, Any]:
    """The document with what was typed; the values are judged by the schema."""
    for text in changes:
        name, sign, value = text.partition("=")
        if not sign or name not in names:
            raise UsageTrouble(f"{text!r} is not NAME=VALUE with one of these names: {', '.join(names)}")
        caps[name] = None if value == "none" else _value(value)
    return caps


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tell(found: Shown, as_json: bool) -> None:
    if as_json:
        json_out(found)
        return
    if isinstance(found, CapsDocument):
        changed = moment(found.changed_at) if found.changed_at else "never"
        title = f"version {found.version}, changed (KST): {changed}"
        console().print(table(title, ("what", ">value"), _rows(found.caps.model_dump(mode="json"), "no cap")))
        return
    if isinstance(found, ProgramCapsDocument):
        its = _rows(found.caps.model_dump(mode="json"), "no cap of its own")
        console().print(table(f"caps of programme {found.program_id}", ("what", ">value"), its))
        return
    own = _rows(found.caps.model_dump(mode="json"), "the hub's")
    console().print(table(f"own caps of {found.organization_id}", ("what", ">value"), own))
    bound = found.in_effect
    rows = [
        ("GPUs at once", _text(bound.max_gpus), str(found.gpus_in_use)),
        ("GPUs of one job", _text(bound.job_gpus), ""),
        ("walltime of one job", duration_text(bound.job_walltime_s), ""),
        ("jobs that wait", str(bound.queued_jobs), str(found.queued_jobs)),
    ]
    console().print(table("in effect", ("cap", ">at most", ">now"), rows))
    if found.programs:
        columns = ("programme", ">GPUs of one job", ">walltime of one job", ">jobs that wait", ">now")
        console().print(
            table("tighter, for jobs that a programme may pay for", columns, map(_bound, found.programs))
        )


def _bound(one: ProgramBound) -> tuple[str, ...]:
    caps = one.caps
    walltime = "" if caps.job_walltime_s is None else duration_text(caps.job_walltime_s)
    gpus, queued = ("" if cap is None else str(cap) for cap in (caps.job_gpus, caps.queued_jobs))
    return one.program_id, gpus, walltime, queued, str(one.queued_jobs)


def _rows(caps: Mapping[str, Any], absent: str) -> list[tuple[str, str]]:
    return [(name, absent if value is None else str(value)) for name, value in caps.items()]


def _text(cap: int | None) -> str:
    return "no cap" if cap is None else str(cap)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(caps_app, name="caps", rich_help_panel=OPERATORS)
