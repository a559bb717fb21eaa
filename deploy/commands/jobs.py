"""`gpuhub submit`, `jobs`, `job`, `cancel`."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from deploy.commands.follow import follow_job
from deploy.commands.switches import show_quote
from deploy.durations import duration_s, duration_text
from deploy.session import Exit, Language, UsageTrouble, service
from deploy.show import JsonOption, console, hours, json_out, moment, table
from deploy.waiting import waiting_line
from quota.schemas.forecasts import EtaBasis, JobEta
from quota.schemas.idle import JobKind
from quota.schemas.jobs import Attempt, Job, JobDetail, JobSubmission
from quota.schemas.scheduling import EndReason, JobState, Topology

Json = Annotated[bool, JsonOption]
Lang = Annotated[
    Language | None,
    typer.Option(
        "--lang",
        help="What sentences are told in; default GPUHUB_LANGUAGE, else the locale's.",
        show_default=False,
    ),
]


def submit(
    name: Annotated[str, typer.Argument(help="What to call the job.")],
    command: Annotated[list[str] | None, typer.Argument(help="The command, after `--`.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs per pod.")] = 1,
    pods: Annotated[int, typer.Option(help="Pods that start together (a gang).")] = 1,
    gpu_class: Annotated[
        str, typer.Option(help="GPU class or MIG profile; see `gpuhub class list`.")
    ] = "h100",
    fallback: Annotated[
        list[str] | None,
        typer.Option(help="A further GPU class that it accepts; may be repeated, in order of preference."),
    ] = None,
    topology: Annotated[
        Topology, typer.Option(help="How its pods have to lie to each other, or should.")
    ] = Topology.ANY,
    kind: Annotated[
        JobKind,
        typer.Option(help="What the idle rules take it for: interactive ones may pause for less long."),
    ] = JobKind.BATCH,
    walltime: Annotated[str, typer.Option(help="Time limit: 1h30m, 90m or 5400.")] = "1h",
    grant: Annotated[
        str | None, typer.Option(help="The grant that pays; default: the one that ends first.")
    ] = None,
    opportunistic: Annotated[
        bool,
        typer.Option(
            "--opportunistic",
            help="Run it on idle GPUs, paid by the programme, and stop it when somebody is entitled to them.",
        ),
    ] = False,
    program: Annotated[
        str | None, typer.Option(help="The programme that pays for an opportunistic job.")
    ] = None,
    restartable: Annotated[
        bool,
        typer.Option("--restartable", help="Queue it again when a node fails, or it was stopped for others."),
    ] = False,
    image: Annotated[str, typer.Option(help="Container image.")] = "",
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    annotation: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; may be repeated.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency-Key: the same key and job twice are one job.")
    ] = None,
    organization: Annotated[str | None, typer.Option(help="Operators: submit for this organization.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the job to its end; exit 1 unless it succeeded.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cost, grant and wait, and submit nothing.")
    ] = False,
    lang: Lang = None,
    as_json: Json = False,
) -> None:
    """Submit a job: `gpuhub submit train --gpus 4 --walltime 2h -- python train.py`."""
    with service(lang) as client:
        body = JobSubmission(
            name=name,
            gpu_class=gpu_class,
            gpu_classes=(gpu_class, *fallback) if fallback else (),
            gpus_per_pod=gpus,
            pods=pods,
            topology=topology,
            kind=kind,
            walltime_s=_walltime_s(walltime),
            grant_id=grant,
            opportunistic=opportunistic,
            program_id=program,
            restartable=restartable,
            image=image,
            command=tuple(command or ()),
            environment=_pairs("--env", env or []),
            annotations=_pairs("--annotation", annotation or []),
            organization_id=organization,
        )
        if dry_run:
            quote = client.quote_job(body, key)
            json_out(quote) if as_json else show_quote(quote)
            return
        job = client.submit_job(body, key or uuid4().hex)
        if not wait:
            _tell_submitted(job, as_json)
            return
        ended = follow_job(client, job, quiet=as_json)
    if as_json:
        json_out(ended)
    else:
        console().print(_job_view(ended))
    if ended.end_reason is not EndReason.SUCCEEDED:
        raise typer.Exit(int(Exit.REFUSED))


def jobs(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    organization: Annotated[str | None, typer.Option(help="Operators: only this organization's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 20,
    lang: Lang = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with service(lang) as client:
        found: list[Job] = []
        before: str | None = None
        while len(found) < limit:
            page = client.list_jobs(state, organization, before, min(limit - len(found), 200))
            found.extend(page.items)
            before = page.next
            if before is None:
                break
    if as_json:
        json_out(found)
        return
    rows = [
        (
            job.id,
            job.organization_id,
            job.name,
            _state_text(job),
            f"{job.pods} x {job.gpus_per_pod} {_classes_text(job)}",
            duration_text(job.walltime_s),
            hours(job.charged_gpu_us),
            moment(job.submitted_at),
            "" if job.waiting is None else f"{job.waiting.code.value}, place {job.position or '?'}",
            "" if job.eta is None else moment(job.eta.median),
        )
        for job in found
    ]
    columns = (
        "job",
        "organization",
        "name",
        "state",
        "pods x GPUs",
        ">limit",
        ">GPU-h charged",
        "submitted (KST)",
        "waits for",
        "starts about",
    )
    console().print(
        table("", columns, rows) if rows else "no jobs; submit one with `gpuhub submit NAME -- COMMAND`"
    )
    for waits in (job for job in found if job.waiting is not None):
        console().print(f"{waits.id} waits: {waiting_line(waits)}", markup=False, soft_wrap=True)
    for idles in (job for job in found if job.idle_text):
        console().print(f"{idles.id} ({_idle_word(idles)}): {idles.idle_text}", markup=False, soft_wrap=True)


def job(
    job_id: Annotated[str, typer.Argument(help="The job's id.")], lang: Lang = None, as_json: Json = False
) -> None:
    """Show one job: its attempts, where it runs, what it was charged and why it waits."""
    with service(lang) as client:
        found = client.read_job(job_id)
    if as_json:
        json_out(found)
    else:
        console().print(_job_view(found))


def cancel(job_id: Annotated[str, typer.Argument(help="The job's id.")], as_json: Json = False) -> None:
    """Ask a job to end. A waiting one ends at once, a running one within its grace time."""
    with service() as client:
        found = client.cancel_job(job_id)
    if as_json:
        json_out(found)
    else:
        typer.echo(f"{found.id}: {_state_text(found)}" + ("" if found.ended_at else ", asked to end"))


def _tell_submitted(job: Job, as_json: bool) -> None:
    if as_json:
        json_out(job)
        return
    typer.echo(
        f"{job.id} submitted: at most {hours(job.cost_limit_gpu_us)} GPU-h will be held when it starts"
    )
    typer.echo(f"follow it with: gpuhub job {job.id}")


def _walltime_s(text: str) -> int:
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageTrouble(f"--walltime: {error}") from error


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageTrouble(f"{option} {text!r} is not KEY=VALUE")
        pairs[name] = value
    return pairs


def _state_text(job: Job) -> str:
    return job.state.value if job.end_reason is None else f"{job.state.value}: {job.end_reason.value}"


def _idle_word(job: Job) -> str:
    return "" if job.idle is None else job.idle.state.value.replace("_", " ")


def _classes_text(job: Job) -> str:
    lie = "" if job.topology is Topology.ANY else f" ({job.topology.value.replace('_', ' ')})"
    return " or ".join(job.gpu_classes or (job.gpu_class,)) + lie


def _job_view(job: JobDetail) -> RenderableType:
    head = [
        f"{job.id}  {job.name}  ({job.organization_id})",
        f"  state      {_state_text(job)}" + (f" ({job.end_text})" if job.end_text else ""),
        f"  asks for   {job.pods} x {job.gpus_per_pod} {_classes_text(job)} "
        f" for at most {duration_text(job.walltime_s)} (costs at most {hours(job.cost_limit_gpu_us)} GPU-h)",
        f"  submitted  {moment(job.submitted_at)}"
        + (f", ended {moment(job.ended_at)}" if job.ended_at else "")
        + " (KST)",
        f"  charged    {hours(job.charged_gpu_us)} GPU-h of the reference GPU",
    ]
    if job.idle_text:
        head.append(f"  idle       {job.idle_text}")
    if job.opportunistic:
        head.append(f"  paid by    programme {job.program_id}: it is opportunistic, and first to be stopped")
    if job.waiting is not None and job.state is JobState.QUEUED:
        head.append(f"  waits      {waiting_line(job)}")
        if job.eta is not None:
            head.append(f"  starts     {_eta_line(job.eta)}")
    parts: list[RenderableType] = [Text("\n".join(head))]
    parts.extend(
        Text(f"\nattempt {attempt.attempt}\n" + "\n".join(_attempt_lines(attempt, job)))
        for attempt in job.attempts
    )
    return Group(*parts)


def _eta_line(eta: JobEta) -> str:
    """The band and the middle, in Korea's time, and what they rest on."""
    on = "played futures" if eta.basis is EtaBasis.EXACT else "the rate at which its organization is served"
    return (
        f"likely {moment(eta.low)} to {moment(eta.high)}, about {moment(eta.median)} (KST)"
        f"; foretold {moment(eta.as_of)} from {on}"
    )


def _attempt_lines(attempt: Attempt, job: JobDetail) -> list[str]:
    places = ", ".join(f"{pod.node} ({pod.count} {pod.gpu_class})" for pod in attempt.pods)
    ended = "" if attempt.end_reason is None else f": {attempt.end_reason.value}"
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    lines = [
        f"  state      {attempt.state.value}{ended}{code}{'' if attempt.detail is None else f' ({attempt.detail})'}",
        f"  placed on  {attempt.cluster}: {places}",
        f"  ran        {moment(attempt.last_started_at)} to {moment(attempt.ended_at)}" + _ran_text(attempt),
        f"  charge     {_charge_text(attempt)}",
    ]
    if attempt.stop_text is not None:
        lines.append(f"  notice     {attempt.stop_text}")
    if attempt.extensions:
        given = ", ".join(
            f"{duration_text(entry.walltime_s)} on {moment(entry.at)} ({entry.reason})"
            for entry in attempt.extensions
        )
        lines.append(f"  extended   by {given}: {duration_text(attempt.walltime_s)} in all")
    lines.extend(
        f"  warned     {moment(warning.at)}: no work since {moment(warning.idle_since)}"
        + ("" if warning.withdrawn_at is None else f", withdrawn {moment(warning.withdrawn_at)}")
        for warning in job.idle_warnings
        if warning.attempt == attempt.attempt
    )
    measured = [row for row in job.measured if row.attempt == attempt.attempt]
    if measured:
        busy, observed = sum(row.busy_ms for row in measured), sum(row.observed_ms for row in measured)
        share = f"{busy / observed:.0%}" if observed else "nothing"
        lines.append(
            f"  measured   busy {duration_text(busy / 1000)} of {duration_text(observed / 1000)} observed"
            f" on {len({row.gpu_uuid for row in measured})} GPUs = {share}"
        )
    return lines


def _charge_text(attempt: Attempt) -> str:
    held, settled = hours(attempt.held_gpu_us), hours(attempt.settled_gpu_us)
    if attempt.hold_resolved:
        text = f"held {held} - released {hours(attempt.released_gpu_us)} = settled {settled} GPU-h"
    else:
        text = f"held {held} GPU-h, {settled} of them settled so far"
    if attempt.refunded_gpu_us:
        text += f"; refunded {hours(attempt.refunded_gpu_us)}"
    if attempt.platform_gpu_us:
        text += f"; paid by the platform {hours(attempt.platform_gpu_us)}"
    return f"{text} (grant {attempt.grant_id})"


def _ran_text(attempt: Attempt) -> str:
    if attempt.last_started_at is None or attempt.ended_at is None:
        return ""
    ran_ms = attempt.ended_at - attempt.last_started_at
    gpus = sum(pod.count for pod in attempt.pods)
    return f" = {ran_ms:,} ms x {gpus} GPUs"


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("submit", no_args_is_help=True)(submit)
    app.command("jobs")(jobs)
    app.command("job", no_args_is_help=True)(job)
    app.command("cancel", no_args_is_help=True)(cancel)
