"""`gpuhub fair-share`: how the hub shares GPUs that several want, shown and changed by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from deploy.durations import duration_text
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, json_out, moment, table
from quota.schemas.fair_share import (
    FairShare,
    FairShareDocument,
    FairSharePut,
    Lane,
    Preemption,
    ProgramShare,
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
PARTS: Mapping[str, type[Lane | Preemption]] = {"lane": Lane, "preemption": Preemption}
NAMES = (
    *FairShare.model_fields,
    *(f"{part}.{name}" for part, model in PARTS.items() for name in model.model_fields),
)
OF_ID: Mapping[str, tuple[str, ...]] = {
    "programs": tuple(ProgramShare.model_fields),
    "organization_weights": (),
}
"""What stands by the id of a programme or an organization, and its numbers; none: it is one itself."""
SHOWN_NAMES = ", ".join(
    (*NAMES, *(f"programs.ID.{name}" for name in OF_ID["programs"]), "organization_weights.ID")
)

fair_share_app = typer.Typer(no_args_is_help=True, help="Order, reservations, lane and preemption.")


@fair_share_app.command("show")
def show(as_json: Json = False) -> None:
    """Show how the hub shares GPUs that several want."""
    with service() as client:
        found = client.read_fair_share()
    _tell(found, as_json)


@fair_share_app.command("set")
def put(
    changes: Annotated[
        list[str],
        typer.Argument(
            help="NAME=VALUE, such as preemption.notice_ms=900000, lane=off, lane=on (its defaults). "
            "programs.poc.reserved_thousandths=250. Names: " + SHOWN_NAMES
        ),
    ],
    reason: Why,
    as_json: Json = False,
) -> None:
    """Change some of it; what is not named stays. The scheduler follows from its next cycle on."""
    with service() as client:
        found = client.read_fair_share()
        wanted = _changed(found.fair_share.model_dump(mode="json"), changes)
        body = FairSharePut.model_validate_json(json.dumps({"fair_share": wanted, "reason": reason}))
        stored = client.put_fair_share(body, found.etag)
    _tell(stored, as_json)


def _changed(share: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The document with what was typed; the values are judged by the schema."""
    for text in changes:
        name, sign, value = text.partition("=")
        parts = path_of(name) if sign else None
        if parts is None:
            raise UsageTrouble(f"{text!r} is not NAME=VALUE with one of these names: {SHOWN_NAMES}")
        within = share
        for part in parts[:-1]:
            if within.setdefault(part, {}) is None:
                raise UsageTrouble(f"{part} is off; say {part}=on before {text!r}")
            within = within[part]
        within[parts[-1]] = _value(value)
    return share


def path_of(name: str) -> tuple[str, ...] | None:
    """Where in the document a name leads, such as (programs, poc, weight_thousandths); None: there is no such name."""
    if name in NAMES:
        return tuple(name.split("."))
    part, _, rest = name.partition(".")
    if not rest or part not in OF_ID:
        return None
    if not OF_ID[part]:
        return part, rest
    ident, _, number = rest.rpartition(".")
    return (part, ident, number) if ident and number in OF_ID[part] else None


def _value(text: str) -> object:
    match text:
        case "off":
            return None
        case "on":
            return {}
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tell(found: FairShareDocument, as_json: bool) -> None:
    if as_json:
        json_out(found)
        return
    changed = moment(found.changed_at) if found.changed_at else "never"
    title = f"version {found.version}, changed (KST): {changed}"
    console().print(
        table(title, ("what", ">value"), list(_rows("", found.fair_share.model_dump(mode="json"))))
    )


def _rows(before: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _rows(f"{before}{name}.", value)
        elif name == "tapers":
            yield from ((f"{before}tapers", _taper_text(taper)) for taper in value)
        elif name.endswith("_ms"):
            yield f"{before}{name}", f"{value} ({duration_text(value / 1000)})"
        else:
            yield f"{before}{name}", "off" if value is None else str(value)


def _taper_text(taper: Mapping[str, int]) -> str:
    return f"up to {duration_text(taper['walltime_ms'] / 1000)}: {taper['spare_thousandths'] / 10:+g} %"


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(fair_share_app, name="fair-share", rich_help_panel=OPERATORS)
