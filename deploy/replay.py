"""`gpuhub replay`: a trace through the scheduler, or a saved state of the hub played on to the end of its queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand
from typer.main import get_command

from deploy.durations import duration_text
from deploy.session import UsageTrouble, told
from deploy.show import console, hours, moment, table
from deploy.whatif import horizon_h
from quota.schemas.snapshots import SchedulerState
from quota.schemas.what_if import FairShareWhatIf, Future, Waits
from scheduler.ahead.outlook import Prospect
from scheduler.core.policy import HOUR_MS, PRESETS
from scheduler.replay import cli as traces
from scheduler.snapshots.file import BadSnapshot, looks_like_state, read_state
from scheduler.whatif.changing import change
from scheduler.whatif.playing import Horizon, played, summed, waiting_of

AS_SAVED = "hub"
"""The policy that the state itself has."""
NAMES = f"{AS_SAVED} (as it was saved), {', '.join(PRESETS)}"

ABOUT = """Play a saved state on, in virtual time, to the end of its queue: what starts when, who waits how long.

    gpuhub replay state.json.gz --policy hub,grant-easy

FILE is one of `gpuhub scheduler snapshot`. Its grants, running jobs and promised room are as they were; nothing more
is submitted. What does not start within the horizon counts as waiting until the last event that was played.
"""

state_app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Play:
    """One policy's future."""

    name: str
    future: Future
    jobs: Sequence[Prospect]
    """Those that waited, by their start; those that never start last."""
    until_ms: int


@state_app.command(help=ABOUT, epilog="Exit codes: 0 done · 2 wrong usage, or a file that cannot be read")
def replay_state(
    file: Annotated[Path, typer.Argument(help="The saved state.", show_default=False)],
    policy: Annotated[
        str, typer.Option(help=f"One or several, comma-separated, or `all`: {NAMES}.")
    ] = AS_SAVED,
    horizon: Annotated[str, typer.Option(help="Play at most so long: 24h, 7d.")] = "90d",
    runs: Annotated[
        float, typer.Option(min=0.001, max=1, help="How much of its walltime each job is taken to run.")
    ] = 1.0,
    most: Annotated[
        int, typer.Option(min=0, help="Show when so many jobs start, under the first policy; 0: all.")
    ] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
) -> None:
    """Play it under each policy."""
    with told():
        if json_file and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
            raise UsageTrouble(f"--json: {json_file} is a directory, or its directory does not exist")
        names = _policies(policy)
        span = Horizon(horizon_h(horizon), max(1, round(runs * 1000)))
        try:
            state = read_state(file)
            plays = [_play(state, name, span) for name in names]
        except BadSnapshot as error:
            raise UsageTrouble(str(error)) from error
        _tell(state, plays, most)
        if json_file:
            json_file.write_text(json.dumps(_document(state, plays), indent=1) + "\n", encoding="utf-8")


def _policies(text: str) -> tuple[str, ...]:
    known = (AS_SAVED, *PRESETS)
    names = known if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise UsageTrouble(f"--policy: there is no {name!r}; there are {', '.join(known)}, and all")
        if names.count(name) > 1:
            raise UsageTrouble(f"--policy: {name!r} is given twice")
    return names


def _play(state: SchedulerState, name: str, horizon: Horizon) -> Play:
    items: Sequence[Any] = state.items
    if name != AS_SAVED:
        items = change(state, [FairShareWhatIf(kind="fair_share", preset=name)]).items
    last_ms = state.taken_at

    def hear(now_ms: int, _plan: object) -> None:
        nonlocal last_ms
        last_ms = now_ms

    outlook = played(state, items, horizon, tell=hear)
    until_ms = last_ms if outlook.complete else state.taken_at + horizon.hours * HOUR_MS
    jobs = sorted(waiting_of(items, outlook), key=lambda job: (job.start_ms or until_ms + 1, job.job_id))
    return Play(name, summed(items, outlook, until_ms), jobs, until_ms)


# --- what is shown ---


def _tell(state: SchedulerState, plays: Sequence[Play], most: int) -> None:
    out = console()
    typer.echo(f"from {moment(state.taken_at)} KST on; played until (KST):")
    for play in plays:
        never = sum(job.start_ms is None for job in play.jobs)
        typer.echo(f"  {play.name}: {moment(play.until_ms)}, {never} of {len(play.jobs)} jobs never start")
    for title, rows in _sections(plays):
        typer.echo("")
        out.print(table(title, ("", *(f">{play.name}" for play in plays)), rows))
    if plays[0].jobs:
        typer.echo("")
        out.print(_starts(plays[0], most))


def _sections(plays: Sequence[Play]) -> Iterable[tuple[str, list[Sequence[str]]]]:
    futures = [play.future for play in plays]
    for title, show in (
        ("jobs that start", lambda of: f"{of.started} of {of.jobs}"),
        ("mean wait", lambda of: _span(of.mean_wait_ms)),
        ("95 % wait at most", lambda of: _span(of.p95_wait_ms)),
    ):
        yield title, [*_by(futures, _sizes, "GPUs", show), *_by(futures, _organizations, "", show)]
    yield (
        "delivered of the grants",
        [
            (name, *(f"{of.grants[name].delivered_thousandths / 10:.1f} %" for of in futures))
            for name in futures[0].grants
        ],
    )
    yield (
        "the whole",
        [
            ("preemptions", *(str(of.all_jobs.preemptions) for of in futures)),
            ("GPU hours occupied", *(f"{of.occupied_gpu_ms / HOUR_MS:,.1f}" for of in futures)),
            (
                "GPU-h charged to grants",
                *(hours(sum(each.used_gpu_us for each in of.organizations.values())) for of in futures),
            ),
        ],
    )


def _by(
    futures: Sequence[Future],
    groups: Callable[[Future], dict[str, Waits]],
    unit: str,
    show: Callable[[Waits], str],
) -> list[Sequence[str]]:
    return [
        (f"{name} {unit}".strip(), *(show(groups(of)[name]) for of in futures))
        for name, first in groups(futures[0]).items()
        if first.jobs
    ]


def _sizes(future: Future) -> dict[str, Waits]:
    return {"all": future.all_jobs, **future.sizes}


def _organizations(future: Future) -> dict[str, Waits]:
    return dict(future.organizations)


def _starts(play: Play, most: int) -> Table:
    shown = play.jobs[: most or len(play.jobs)]
    more = f", the first {len(shown)} of {len(play.jobs)}" if len(shown) < len(play.jobs) else ""
    rows = [
        (
            *(job.job_id, job.organization_id, str(job.gpus), moment(job.start_ms)),
            "never" if job.start_ms is None else _span(job.start_ms - job.submitted_at_ms),
            moment(job.end_ms),
        )
        for job in shown
    ]
    columns = ("job", "organization", ">GPUs", "starts (KST)", ">waits", "ends (KST)")
    return table(f"what starts when under {play.name}{more}", columns, rows)


def _span(ms: int) -> str:
    return duration_text(ms / 1000)


def _document(state: SchedulerState, plays: Sequence[Play]) -> dict[str, Any]:
    return {
        "taken_at_ms": state.taken_at,
        "policies": [
            {
                "policy": play.name,
                "until_ms": play.until_ms,
                "future": play.future.model_dump(mode="json"),
                "jobs": [
                    {
                        "job_id": job.job_id,
                        "organization_id": job.organization_id,
                        "grant_id": job.grant_id,
                        "gpus": job.gpus,
                        "submitted_at_ms": job.submitted_at_ms,
                        "start_ms": job.start_ms,
                        "end_ms": job.end_ms,
                        "preemptions": job.preemptions,
                    }
                    for job in play.jobs
                ],
            }
            for play in plays
        ],
    }


# --- which of the two ---


class _Either(TyperCommand):
    """The trace's command, or, where its argument is a saved state, that one's: their options have little in common."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse the command line of the command that is meant."""
        if not any(looks_like_state(path) for path in _arguments(args)):
            return super().make_context(info_name, args, *rest, **extra)
        return get_command(state_app).make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was parsed."""
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


def _arguments(args: Sequence[str]) -> Iterable[Path]:
    """What is neither an option nor an option's value: every option of both commands but --help takes one."""
    before = ""
    for word in args:
        if not word.startswith("-") and not (before.startswith("--") and "=" not in before):
            yield Path(word)
        before = word


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.command(
    "replay",
    cls=_Either,
    help=f"{traces.ABOUT}\nOr a saved state of the hub (`gpuhub scheduler snapshot`), which is played on to the end of "
    "its queue: see `gpuhub replay STATE --help`.\n",
    epilog="Exit codes: 0 done · 2 wrong usage, or a trace that cannot be read",
)(traces.replay)
