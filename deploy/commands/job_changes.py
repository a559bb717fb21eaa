"""`gpuhub extend` and `gpuhub refund`: more time for a running job, charged time given back."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer

from deploy.durations import duration_s, duration_text
from deploy.moments import moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, hours, json_out, moment, table
from quota.schemas.job_changes import ExtendedJob, JobExtension, JobRefund, RefundedJob
from quota.schemas.ledger import RefundKind

Json = Annotated[bool, JsonOption]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger and in the audit trail.")]
Key = Annotated[str | None, typer.Option(help="Idempotency-Key: the same request twice is done once.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would do, and do nothing.")]


def extend(
    job_id: JobId,
    time: Annotated[str, typer.Argument(help="How much more time: 1h30m, 90m or 5400.")],
    reason: Why,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give a running job more time: `gpuhub extend JOB 2h --reason "two more epochs"`. Its cost is held first."""
    with service() as client:
        body = JobExtension(walltime_s=_time_s(time), reason=reason)
        told = client.extend_job(job_id, body, key or uuid4().hex, dry_run=dry_run)
    if as_json:
        json_out(told)
    else:
        _tell_extended(told)


def refund(
    job_id: JobId,
    starts_at: Annotated[
        str, typer.Option("--from", help="Its beginning: '2026-11-22 18:00' in Seoul, or RFC 3339.")
    ],
    ends_at: Annotated[
        str, typer.Option("--until", help="Its end, written like --from; the end itself is not given back.")
    ],
    kind: Annotated[RefundKind, typer.Option(help="correction: it never ran; else the platform pays it.")],
    reason: Why,
    evidence: Annotated[str, typer.Option(help="The finding, report or paper that it rests on.")],
    attempt: Annotated[int, typer.Option(min=1, help="Which attempt of the job.")] = 1,
    dry_run: DryRun = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give back what a stretch of a job was charged, as far as it was not given back yet (operators)."""
    with service() as client:
        body = JobRefund(
            attempt=attempt,
            starts_at=moment_ms("--from", starts_at),
            ends_at=moment_ms("--until", ends_at),
            kind=kind,
            reason=reason,
            evidence=evidence,
        )
        told = client.refund_job(job_id, body, key or uuid4().hex, dry_run=dry_run)
    if as_json:
        json_out(told)
    else:
        _tell_refunded(told)


def _tell_extended(told: ExtendedJob) -> None:
    more = duration_text(told.extension.walltime_s)
    verb = "would get" if told.dry_run else "gets"
    ends = "" if told.ends_at is None else f", until {moment(told.ends_at)} KST at the latest"
    typer.echo(
        f"{told.job_id} {verb} {more} more: {duration_text(told.walltime_s)} in all{ends};"
        f" {hours(told.extension.held_gpu_us)} GPU-h more {'would be' if told.dry_run else 'are'} held"
    )
    if told.fitting_walltime_s:
        typer.echo(f"after that its grant allows {duration_text(told.fitting_walltime_s)} more")


def _tell_refunded(told: RefundedJob) -> None:
    rows = [
        (
            transfer.transfer_id,
            moment(transfer.starts_at),
            moment(transfer.ends_at),
            transfer.payer,
            hours(transfer.amount_gpu_us),
        )
        for transfer in told.transfers
    ]
    columns = ("transfer", "from (KST)", "until (KST)", "had paid", ">GPU-h")
    console().print(table("", columns, rows))
    verb = "would get" if told.dry_run else "gets"
    left = duration_text(told.fault_time_left_ms / 1000)
    typer.echo(
        f"the grant {verb} {hours(told.refunded_gpu_us)} GPU-h back ({told.kind.value});"
        f" {left} of this job may still be given back after faults"
    )


def _time_s(text: str) -> int:
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageTrouble(f"TIME: {error}") from error


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("extend", no_args_is_help=True)(extend)
    app.command("refund", no_args_is_help=True, rich_help_panel=OPERATORS)(refund)
