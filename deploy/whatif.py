"""`gpuhub whatif`: the same queue and ledger under other numbers, of a saved state or of the live hub."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from deploy.commands.sharing import SHOWN_NAMES, path_of
from deploy.durations import duration_s, duration_text
from deploy.session import UsageTrouble, service, told
from deploy.show import JsonOption, console, hours, json_out, moment, table
from quota.schemas.what_if import (
    LONGEST_HORIZON_H,
    Future,
    Waits,
    WhatIfChange,
    WhatIfReply,
    WhatIfRequest,
)
from scheduler.core.policy import PRESETS
from scheduler.snapshots.file import BadSnapshot, read_state
from scheduler.whatif.changing import BadChange
from scheduler.whatif.playing import what_if

T = TypeVar("T")
OF_ID: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "grant": ("grant", ("gpu_hours", "max_gpus", "ends_at")),
    "class": ("gpu_class", ("rate_thousandths", "paused")),
    "cluster": ("cluster", ("paused",)),
    "organization": ("organization", ("frozen",)),
}
"""What `--set` changes of an object: the word for it, its kind, and its fields."""
SYNTAX = (
    "TARGET=VALUE with one of these targets: "
    + ", ".join(f"{word}/ID/{'|'.join(fields)}" for word, (_, fields) in OF_ID.items())
    + ", hub/paused, fair-share/NAME"
)
_NODES = re.compile(r"([a-z0-9][a-z0-9.-]{0,62})=([+-][0-9]{1,5})(?:x([0-9]{1,4}))?")
_CHANGE: TypeAdapter[WhatIfChange] = TypeAdapter(WhatIfChange)

ABOUT = """What would become of the queue and the grants under other numbers. Nothing of the hub is changed.

Without FILE the live hub is asked; with a file of `gpuhub scheduler snapshot` everything is played on this machine.

    gpuhub whatif --set grant/GRANT/gpu_hours=2000

    gpuhub whatif state.json.gz --policy grant-easy --nodes h100=+4x8 --horizon 30d
"""

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


EXITS = "Exit codes: 0 done · 1 the service refused · 2 wrong usage, or a file that cannot be read · 3 unavailable"


@app.command(help=ABOUT, epilog=EXITS)
def whatif(
    file: Annotated[
        Path | None, typer.Argument(help="A saved state; without it the live hub.", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help=f"{SYNTAX}. VALUE `none` lifts, `off` and `on` are for lane and preemption. Several times.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"Share like one of: {', '.join(PRESETS)}.", show_default=False)
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            help="CLASS=+N, CLASS=+NxGPUS or CLASS=-N: more or fewer nodes. Several times.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        Path | None,
        typer.Option(
            help="A TOML or JSON file of changes, as `POST /v1/what-if` takes them.", show_default=False
        ),
    ] = None,
    horizon: Annotated[str, typer.Option(help="How far to look: 24h, 7d.")] = "7d",
    runs: Annotated[
        float, typer.Option(min=0.001, max=1, help="How much of its walltime each job is taken to run.")
    ] = 1.0,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    with told():
        asked = [
            *(_of_file(changes) if changes else ()),
            *([_of_policy(policy)] if policy else ()),
            *(_of_nodes(text) for text in nodes or ()),
            *(_of_set(text) for text in change or ()),
        ]
        if not asked:
            raise UsageTrouble("say what would be otherwise: --set, --policy, --nodes or --changes")
        request = WhatIfRequest(
            changes=tuple(each.change for each in asked),
            horizon_h=horizon_h(horizon),
            runs_thousandths=max(1, round(runs * 1000)),
        )
        reply = _ask(file, request, [each.typed for each in asked])
        if as_json:
            json_out(reply)
        else:
            _tell(reply)


def horizon_h(text: str) -> int:
    """Whole hours of `--horizon`, rounded up. Raises UsageTrouble."""
    try:
        found = -(-duration_s(text) // 3600)
    except ValueError as error:
        raise UsageTrouble(f"--horizon: {error}") from error
    if found > LONGEST_HORIZON_H:
        raise UsageTrouble(f"--horizon: {text} is more than {LONGEST_HORIZON_H // 24} days")
    return found


def _ask(file: Path | None, request: WhatIfRequest, typed: Sequence[str]) -> WhatIfReply:
    if file is None:
        with service() as client:
            return client.ask_what_if(request)
    try:
        return what_if(read_state(file), request)
    except BadSnapshot as error:
        raise UsageTrouble(str(error)) from error
    except BadChange as error:
        where = error.field.removeprefix(f"changes.{error.number}").lstrip(".")
        raise UsageTrouble(f"{typed[error.number]}: {where}: {error.detail}") from error


# --- what was typed ---


@dataclass(frozen=True, slots=True)
class Asked:
    """One change, and how it was typed."""

    typed: str
    change: WhatIfChange


def _of_policy(name: str) -> Asked:
    return _checked(f"--policy {name}", {"kind": "fair_share", "preset": name})


def _of_set(text: str) -> Asked:
    target, sign, typed = text.partition("=")
    parts = target.split("/")
    given = f"--set {text}"
    if sign and len(parts) == 2 and parts[0] == "fair-share":
        path = path_of(parts[1])
        if path is None:
            raise UsageTrouble(f"{given}: there is no {parts[1]!r}; there are {SHOWN_NAMES}")
        value: object = _value(typed)
        for part in reversed(path):
            value = {part: value}
        return _checked(given, {"kind": "fair_share", "changes": value})
    if sign and parts == ["hub", "paused"]:
        return _checked(given, {"kind": "hub", "paused": _value(typed)})
    if not sign or len(parts) != 3 or parts[0] not in OF_ID or parts[2] not in OF_ID[parts[0]][1]:
        raise UsageTrouble(f"{given}: this is not {SYNTAX}")
    kind, _ = OF_ID[parts[0]]
    return _checked(given, {"kind": kind, "id": parts[1], parts[2]: _value(typed)})


def _value(text: str) -> object:
    match text:
        case "off" | "none":
            return None
        case "on":
            return {}
    try:
        return json.loads(text)
    except ValueError:
        return text


def _of_nodes(text: str) -> Asked:
    found = _NODES.fullmatch(text)
    if found is None:
        raise UsageTrouble(
            f"--nodes {text}: this is not CLASS=+N, CLASS=+NxGPUS or CLASS=-N, such as h100=+4x8"
        )
    size = None if found[3] is None else int(found[3])
    change = {"kind": "nodes", "gpu_class": found[1], "change": int(found[2]), "gpus_per_node": size}
    return _checked(f"--nodes {text}", change)


def _of_file(file: Path) -> Iterator[Asked]:
    try:
        text = file.read_text(encoding="utf-8")
        document: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageTrouble(f"--changes: {file}: {error.strerror or error}") from error
    except ValueError as error:  # of both readers, and of bytes that are no text
        what = "JSON" if file.suffix == ".json" else "TOML"
        raise UsageTrouble(f"--changes: {file} is not {what}: {error}") from error
    entries = document.get("changes") if isinstance(document, dict) else None
    if not isinstance(entries, list) or set(document) != {"changes"}:
        raise UsageTrouble(f"--changes: {file} holds a list `changes` and nothing else, each with its `kind`")
    for number, entry in enumerate(entries):
        yield _checked(f"--changes: {file}: changes.{number}", entry)


def _checked(given: str, change: object) -> Asked:
    try:
        return Asked(given, _CHANGE.validate_json(json.dumps(change, default=str)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise UsageTrouble(f"{given}: {f'{where}: ' if where else ''}{first['msg']}") from error


# --- what is shown ---


def _tell(reply: WhatIfReply) -> None:
    for line in reply.changed_to or ("nothing is different",):
        typer.echo(line)
    typer.echo(
        f"from {moment(reply.taken_at)} to {moment(reply.until)} KST; jobs run {reply.runs_thousandths / 10:g} % "
        "of their walltime; what does not start by then counts as waiting"
    )
    pairs = [("all", reply.base.all_jobs, reply.changed.all_jobs)]
    pairs += [(name, *both) for name, both in _both(reply.base.sizes, reply.changed.sizes)]
    parts = (
        _waits("jobs by their GPUs", "GPUs", pairs),
        _organizations(reply.base, reply.changed),
        _grants(reply.base, reply.changed),
    )
    for part in parts:
        typer.echo("")
        console().print(part)


def _both(base: Mapping[str, T], changed: Mapping[str, T]) -> list[tuple[str, tuple[T, T]]]:
    """What both futures name; each names what the other does."""
    return [(name, (base[name], changed[name])) for name in changed if name in base]


def _waits(title: str, what: str, pairs: Sequence[tuple[str, Waits, Waits]]) -> Table:
    columns = (what, ">jobs", ">start", ">mean wait", ">95 % wait at most", ">preemptions")
    rows = [(name, *_cells(base, changed)) for name, base, changed in pairs if base.jobs or changed.jobs]
    return table(title, columns, rows)


def _cells(base: Waits, changed: Waits) -> tuple[str, ...]:
    return (
        _changed(base.jobs, changed.jobs, str),
        _changed(base.started, changed.started, str),
        _changed(base.mean_wait_ms, changed.mean_wait_ms, _span),
        _changed(base.p95_wait_ms, changed.p95_wait_ms, _span),
        _changed(base.preemptions, changed.preemptions, str),
    )


def _organizations(base: Future, changed: Future) -> Table:
    columns = ("organization", ">jobs", ">start", ">mean wait", ">95 % wait at most", ">preemptions")
    rows = [
        (
            *(name, *_cells(a, b), _changed(a.used_gpu_us, b.used_gpu_us, hours)),
            _changed(a.delivered_thousandths, b.delivered_thousandths, _percent),
        )
        for name, (a, b) in _both(base.organizations, changed.organizations)
    ]
    return table(
        "jobs by organization, and the grants it leads", (*columns, ">GPU-h used", ">delivered"), rows
    )


def _grants(base: Future, changed: Future) -> Table:
    rows = [
        (
            *(name, _changed(a.granted_gpu_us, b.granted_gpu_us, hours)),
            *(_changed(a.used_gpu_us, b.used_gpu_us, hours),),
            _changed(a.delivered_thousandths, b.delivered_thousandths, _percent),
            _changed(a.due_thousandths, b.due_thousandths, _percent),
        )
        for name, (a, b) in _both(base.grants, changed.grants)
    ]
    columns = ("grant", ">GPU-h granted", ">used by then", ">delivered", ">of its term")
    return table("grants at the end", columns, rows)


def _changed(base: int, changed: int, show: Callable[[int], str]) -> str:
    """`12 -> 15 (+3)`, or only the number where it stays."""
    if base == changed:
        return show(base)
    difference = changed - base
    return f"{show(base)} -> {show(changed)} ({'+' if difference > 0 else '-'}{show(abs(difference))})"


def _span(ms: int) -> str:
    return duration_text(ms / 1000)


def _percent(thousandths: int) -> str:
    return f"{thousandths / 10:.1f} %"
