"""`gpuhub caps`: how many GPUs an organization may keep, how large and long a job may be, how many may wait."""

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
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
NAMES = tuple(HubCaps.model_fields)
OWN_NAMES = tuple(OrganizationCaps.model_fields)
Organization = Annotated[
    str | None,
    typer.Option("--organization", help="An organization's own caps; default: the hub's."),
]
Changes = Annotated[
    list[str],
    typer.Argument(
        help="NAME=VALUE, such as organization_pool_thousandths=250 or job_gpus=none. Names of the hub's: "
        + ", ".join(NAMES)
        + "; of an organization's: "
        + ", ".join(OWN_NAMES)
    ),
]

caps_app = typer.Typer(no_args_is_help=True, help="GPUs at once, size and walltime of jobs, jobs that wait.")


@caps_app.command("show")
def show(organization: Organization = None, as_json: Json = False) -> None:
    """Show the hub's caps, or an organization's with those in effect; a member names its own organization."""
    with service() as client:
        found = client.read_caps() if organization is None else client.read_organization_caps(organization)
    _tell(found, as_json)


@caps_app.command("set")
def put(changes: Changes, reason: Why, organization: Organization = None, as_json: Json = False) -> None:
    """Change some of them; what is not named stays. They bind from the next start and submission on."""
    with service() as client:
        stored: CapsDocument | OrganizationCapsDocument
        if organization is None:
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


def _tell(found: CapsDocument | OrganizationCapsDocument, as_json: bool) -> None:
    if as_json:
        json_out(found)
        return
    if isinstance(found, CapsDocument):
        changed = moment(found.changed_at) if found.changed_at else "never"
        title = f"version {found.version}, changed (KST): {changed}"
        console().print(table(title, ("what", ">value"), _rows(found.caps.model_dump(mode="json"), "no cap")))
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


def _rows(caps: Mapping[str, Any], absent: str) -> list[tuple[str, str]]:
    return [(name, absent if value is None else str(value)) for name, value in caps.items()]


def _text(cap: int | None) -> str:
    return "no cap" if cap is None else str(cap)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(caps_app, name="caps", rich_help_panel=OPERATORS)
