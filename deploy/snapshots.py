"""`gpuhub scheduler`: the program's own commands, and a state of the hub saved to a file and explained without it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deploy.datadir import write_private_bytes
from deploy.durations import duration_text
from deploy.session import ToldGroup, UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table, with_hours
from quota.client import ServiceUnavailable
from scheduler import cli as program
from scheduler.snapshots.decision import decide_on
from scheduler.snapshots.explaining import Explanation, QueuedJob, explained
from scheduler.snapshots.file import BadSnapshot, packed, parse_state, read_state

Json = Annotated[bool, JsonOption]

app = typer.Typer(cls=ToldGroup, add_completion=False, no_args_is_help=True, callback=program.scheduler)
app.registered_commands.extend(program.app.registered_commands)
app.registered_groups.extend(program.app.registered_groups)


@app.command()
def snapshot(
    out: Annotated[Path, typer.Option(help="Where to write; packed if the name ends with .gz.")],
    pseudonyms: Annotated[
        bool, typer.Option("--pseudonyms", help="Numbers for names of organizations, programmes and grants.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Save everything that decides who runs next to a file that explain, replay and whatif read without the hub."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UsageTrouble(f"--out: {out} is a directory, or its directory does not exist")
    whole = BytesIO()
    with service() as client:
        client.save_scheduler_state(whole, pseudonyms=pseudonyms)
    try:
        state = parse_state(whole.getvalue(), "the answer")
        data = packed(whole.getvalue(), out)
        write_private_bytes(out, data)
    except BadSnapshot as error:
        raise ServiceUnavailable(str(error)) from error
    except OSError as error:
        raise UsageTrouble(f"--out: {out}: {error.strerror or error}") from error
    told: dict[str, object] = {
        "file": str(out),
        "bytes": len(data),
        "objects": len(state.items),
        "sha256": state.sha256,
    }
    if as_json:
        json_out(told)
    else:
        typer.echo(
            f"{out}: {len(state.items):,} objects at {moment(state.taken_at)} KST, {len(data):,} bytes; "
            f"read it with: gpuhub scheduler explain {out}"
        )


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A file of `gpuhub scheduler snapshot`.", show_default=False)],
    job: Annotated[str | None, typer.Option(help="Only this job, and the grants that could pay it.")] = None,
    most: Annotated[int, typer.Option(min=0, help="At most so many lines of each table; 0: all.")] = 50,
    as_json: Json = False,
) -> None:
    """Show, without the hub, what it would decide on a saved state: who starts, who waits, in which order and why."""
    try:
        state = read_state(file)
        found = explained(state, decide_on(state))
    except BadSnapshot as error:
        raise UsageTrouble(str(error)) from error
    if job is not None:
        found = _only(found, job, {item.id for item in state.items if item.kind == "job"})
    if as_json:
        json_out(found)
        return
    for part in _parts(found, most or len(state.items) + 1):
        console().print(part)


def _only(found: Explanation, job_id: str, known: Container[str]) -> Explanation:
    """What concerns one job. Raises UsageTrouble if it neither waits nor starts."""
    queue = tuple(job for job in found.queue if job.job_id == job_id)
    starts = tuple(start for start in found.starts if start.job_id == job_id)
    if not queue and not starts:
        state = "does not wait: it runs, or is to be stopped" if job_id in known else "is not in this state"
        raise UsageTrouble(f"--job: {job_id} {state}")
    organization = (queue or starts)[0].organization_id
    return found.model_copy(
        update={
            "queue": queue,
            "starts": starts,
            "stops": tuple(stop for stop in found.stops if job_id in (stop.job_id, stop.for_job)),
            "grants": tuple(grant for grant in found.grants if organization in grant.organizations),
            "reservations": tuple(each for each in found.reservations if each.job_id == job_id),
            "room": tuple(room for room in found.room if not queue or room.gpu_class == queue[0].gpu_class),
        }
    )


def _parts(found: Explanation, most: int) -> Iterator[Table | str]:
    yield f"at {moment(found.taken_at)} KST: {found.running_jobs} jobs run, {len(found.starts)} would start now"
    if found.shown is not None:
        shown = found.shown
        same = "in the same order, for the same reasons"
        other = f"{shown.other_order} stand elsewhere, {shown.other_reason} for another reason"
        told = other if shown.other_order or shown.other_reason else same
        yield f"the hub showed cycle {shown.cycle} at {moment(shown.at)}: of {shown.jobs} jobs in both, {told}"
    yield from _some(
        "the queue",
        (">place", "job", "organization", ">GPUs", "class", ">walltime", "why it waits"),
        [
            (
                *(str(job.place), job.job_id, job.organization_id, _gpus(job), job.gpu_class),
                *(duration_text(job.walltime_ms / 1000), f"{job.code.value}: {with_hours(job.why)}"),
            )
            for job in found.queue
        ],
        most,
    )
    yield from _some(
        "would start now",
        ("job", "organization", "grant", "cluster", "class", "GPUs by node", ">holds GPU-h"),
        [
            (
                *(start.job_id, start.organization_id, start.grant_id, start.cluster, start.gpu_class),
                *(_by_node(start.gpus_by_node), hours(start.cost_gpu_us)),
            )
            for start in found.starts
        ],
        most,
    )
    yield from _some(
        "would be told to stop for another",
        ("job", "for job", "at (KST)"),
        [(stop.job_id, stop.for_job, moment(stop.stop_at)) for stop in found.stops],
        most,
    )
    yield from _rest(found, most)


def _rest(found: Explanation, most: int) -> Iterator[Table | str]:
    yield from _some(
        "room that is promised",
        ("job", "cluster", "class", "from (KST)", "GPUs by node"),
        [
            (each.job_id, each.cluster, each.gpu_class, moment(each.starts_at), _by_node(each.gpus_by_node))
            for each in found.reservations
        ],
        most,
    )
    yield from _some(
        "room that is booked",
        ("booking", "cluster", "GPUs by node", ">short", "used", "released"),
        [
            (
                *(each.booking_id, each.cluster, _by_node(each.gpus_by_node), str(each.short_gpus)),
                *("yes" if flag else "" for flag in (each.used, each.released)),
            )
            for each in found.booked
        ],
        most,
    )
    yield from _some(
        "grants, furthest behind their pace first",
        ("grant", "organizations", ">behind", ">granted", ">used", ">held", ">spent", ">of term", ">waiting"),
        [
            (
                *(grant.grant_id, ", ".join(grant.organizations), _lag(grant.lag_ms)),
                *(hours(amount) for amount in (grant.granted_gpu_us, grant.used_gpu_us, grant.held_gpu_us)),
                f"{(grant.used_gpu_us + grant.held_gpu_us) / max(1, grant.granted_gpu_us):.1%}",
                *(f"{grant.elapsed_thousandths / 1000:.1%}", str(grant.waiting_jobs)),
            )
            for grant in found.grants
        ],
        most,
    )
    yield from _some(
        "GPUs",
        ("cluster", "class", ">all", ">used", ">others", ">free", ">out of service", ">empty nodes"),
        [
            (
                *(room.cluster, room.gpu_class),
                *(str(n) for n in (room.total, room.used, room.foreign, room.free, room.unavailable)),
                str(room.empty_nodes),
            )
            for room in found.room
        ],
        most,
    )


def _some(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int
) -> Iterator[Table | str]:
    """A table under an empty line; nothing where there is nothing."""
    if not rows:
        return
    yield ""
    yield table(title, columns, rows[:most])
    if len(rows) > most:
        yield f"and {len(rows) - most} more; --most 0 shows all"


def _gpus(job: QueuedJob) -> str:
    return str(job.gpus_per_pod) if job.pods == 1 else f"{job.pods} x {job.gpus_per_pod}"


def _by_node(gpus: Mapping[str, int]) -> str:
    return ", ".join(f"{node}: {count}" for node, count in sorted(gpus.items()))


def _lag(lag_ms: int) -> str:
    return "0" if lag_ms == 0 else duration_text(lag_ms / 1000)
