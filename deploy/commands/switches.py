"""`gpuhub freeze`, `pause`, `requeue`, `grant change` and what undoes them (operators); each with `--dry-run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deploy.commands.account import grant_table
from deploy.commands.grants import GrantId, grant_app
from deploy.durations import duration_text
from deploy.moments import moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import AUDITORS, OPERATORS, JsonOption, console, hours, json_out, moment, table, won
from deploy.waiting import reason_text
from quota.client import QuotaClient
from quota.schemas.forecasts import EtaBasis
from quota.schemas.quotes import ClassQuote, GrantQuote, NoEta, Quote
from quota.schemas.switches import (
    Affected,
    FreezeChange,
    GrantEdit,
    PlacementChange,
    PlacementReply,
    Reach,
    RequeueRequest,
    SwitchReply,
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and do nothing.")]
Organization = Annotated[str, typer.Argument(help="The organization's id.")]
Cluster = Annotated[str | None, typer.Option(help="Only this cluster; default: the whole hub.")]
GpuClass = Annotated[str | None, typer.Option(help="Only this GPU class; default: the whole hub.")]
NO_ETA = {
    NoEta.STARTS_NOW: "it would start now",
    NoEta.NOT_BY_TIME: "time alone does not start it",
    NoEta.NO_FORECAST: "the scheduler has made none",
    NoEta.FORECAST_TOO_OLD: "the last one is more than a day old",
    NoEta.NONE_ALIKE: "none is known of jobs like it",
}


def freeze(
    organization: Organization,
    reason: Why,
    stop_running: Annotated[
        bool, typer.Option("--stop-running", help="Cancel what it runs, too; else that goes on.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let an organization start nothing more."""
    _freeze(
        organization, FreezeChange(frozen=True, reason=reason, stop_running=stop_running), dry_run, as_json
    )


def unfreeze(organization: Organization, reason: Why, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let a frozen organization start jobs again."""
    _freeze(organization, FreezeChange(frozen=False, reason=reason), dry_run, as_json)


def pause(
    reason: Why,
    cluster: Cluster = None,
    gpu_class: GpuClass = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let nothing start on the hub, on a cluster or on a GPU class; what runs runs on."""
    _place(PlacementChange(paused=True, reason=reason), cluster, gpu_class, dry_run, as_json)


def resume(
    reason: Why,
    cluster: Cluster = None,
    gpu_class: GpuClass = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let jobs start again where placement was paused."""
    _place(PlacementChange(paused=False, reason=reason), cluster, gpu_class, dry_run, as_json)


def placement(as_json: Json = False) -> None:
    """Show where placement is paused, since when, by whom and why."""
    with service() as client:
        found = client.list_placement()
    if as_json:
        json_out(found)
        return
    rows = [
        (
            item.kind,
            item.id,
            "paused" if item.paused else "open",
            moment(item.since),
            item.by or "",
            item.reason,
        )
        for item in found.items
    ]
    console().print(table("", ("what", "id", "state", "since (KST)", "by", "because"), rows))


def requeue(
    job_id: Annotated[str, typer.Argument(help="The job's id; it must start or run.")],
    reason: Why,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send a job back into the queue; what it used stays charged."""
    with service() as client:
        done = client.requeue_job(job_id, RequeueRequest(reason=reason), dry_run=dry_run)
    if as_json:
        json_out(done)
        return
    typer.echo(_head(done, f"{job_id} goes back into the queue"))
    lost = done.lost
    rows = [
        ("attempt", str(done.attempt)),
        ("work lost since", moment(lost.since)),
        ("work lost", f"{duration_text(lost.milliseconds / 1000)} on {lost.gpus} GPUs"),
        ("GPU-h lost", hours(lost.gpu_us)),
        ("GPU-h that stay charged", hours(done.charged_gpu_us)),
    ]
    console().print(table("", ("", ""), rows))


@grant_app.command("change")
def change_grant(
    grant_id: GrantId,
    reason: Why,
    ends_at: Annotated[
        str | None, typer.Option(help="The new end: '2027-02-28 23:59' in Seoul, or RFC 3339.")
    ] = None,
    max_gpus: Annotated[int | None, typer.Option(help="GPUs it may have in use at once.")] = None,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="Lift the cap on GPUs in use.")] = False,
    if_match: Annotated[
        str | None, typer.Option(help="Only if it still has this ETag, the header of GET /v1/grants/ID.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Move a grant's end, or set or lift its cap; what is left out stays."""
    with service() as client:
        body = _edit(reason, ends_at, max_gpus, no_cap)
        done = client.edit_grant(grant_id, body, if_match, dry_run=dry_run)
    if as_json:
        json_out(done)
        return
    typer.echo(_head(done, f"{grant_id} changed"))
    cap = "none" if done.grant.max_gpus is None else str(done.grant.max_gpus)
    rows = [
        ("cap on GPUs in use", cap, ""),
        _row("attempts whose limit reaches past the end", done.past_the_end),
        _row("waiting jobs that no longer fit", done.no_longer_fit),
        ("GPU-h that would expire", hours(done.expires_gpu_us), ""),
    ]
    console().print(grant_table([done.grant]))
    console().print(table("", ("", ">", "first of them"), rows))


def show_quote(found: Quote) -> None:
    """What `gpuhub submit --dry-run` shows."""
    cost, wait = found.cost, found.estimate
    out = console()
    out.print(
        f"costs at most {hours(cost.gpu_us)} GPU-h of the reference GPU ({won(cost.krw)});"
        f" paid by {found.grant_id or 'no grant now'}",
        markup=False,
    )
    if found.payer_text is not None:
        out.print(found.payer_text, markup=False)
    if len(found.classes) > 1:
        shown = ("GPU class", ">costs at most, GPU-h", ">won", "paid by", "starts")
        out.print(table("GPU classes in order of preference", shown, map(_class_cells, found.classes)))
        out.print(f"what follows is for {found.gpu_class}", markup=False)
    columns = ("grant", "could pay", ">left", ">GPUs left", "ends (KST)", ">limit that fits")
    out.print(table("grants in the order in which they are asked", columns, map(_grant_cells, found.grants)))
    reason = reason_text(wait.waiting, wait.waiting_text)
    starts = wait.starts.value + (f" ({reason})" if reason else "")
    lines = [f"starts {starts}; place {wait.position or wait.position_at_worst} in the queue"]
    if wait.room_at_the_latest is not None and wait.room_at_the_latest > found.as_of:
        lines.append(f"room at the latest by {moment(wait.room_at_the_latest)} KST if nothing goes before it")
    lines.append(_quoted_start(found))
    if wait.start_by is not None:
        lines.append(f"must start by {moment(wait.start_by)} KST for a grant to pay for all of it")
    if wait.history is not None:
        past = wait.history
        lines.append(
            f"{past.jobs} jobs of {past.gpus_from} to {past.gpus_to} GPUs waited"
            f" {duration_text(past.median_wait_s)} in the middle over {past.days} days"
        )
    if wait.ranking_age_s is not None:
        lines.append(f"the queue was ranked {duration_text(wait.ranking_age_s)} ago")
    out.print("\n".join(lines), markup=False)


def _quoted_start(found: Quote) -> str:
    eta = found.eta
    if eta is None:
        return f"no forecast of its start: {NO_ETA[found.no_eta or NoEta.NO_FORECAST]}"
    on = "played futures" if eta.basis is EtaBasis.EXACT else "the rate at which its organization is served"
    return (
        f"submitted now, likely to start {moment(eta.low)} to {moment(eta.high)}, about {moment(eta.median)} (KST)"
        f"; foretold {duration_text(eta.age_s)} ago from {on}, {eta.jobs} jobs like it"
    )


def _class_cells(one: ClassQuote) -> tuple[str, ...]:
    reason = "" if one.waiting is None else f" ({one.waiting.code.value})"
    cost = one.cost
    return one.gpu_class, hours(cost.gpu_us), won(cost.krw), one.grant_id or "", one.starts.value + reason


def _grant_cells(one: GrantQuote) -> tuple[str, ...]:
    fits = "" if one.fitting_walltime_s is None else duration_text(one.fitting_walltime_s)
    gpus = "" if one.gpus_left is None else str(one.gpus_left)
    return one.grant_id, one.verdict.value, hours(one.left_gpu_us), gpus, moment(one.ends_at), fits


def _freeze(organization: str, body: FreezeChange, dry_run: bool, as_json: bool) -> None:
    with service() as client:
        done = client.freeze_organization(organization, body, dry_run=dry_run)
    if as_json:
        json_out(done)
        return
    state = "frozen" if done.organization.frozen else "not frozen"
    typer.echo(_head(done, f"{done.organization.id} is {state}"))
    stopped = [_row("running jobs cancelled", done.stopped)] if body.stop_running else []
    console().print(reach_table(done.reach, stopped))


def _place(
    body: PlacementChange, cluster: str | None, gpu_class: str | None, dry_run: bool, as_json: bool
) -> None:
    with service() as client:
        if cluster is not None and gpu_class is not None:
            raise UsageTrouble("name --cluster or --gpu-class, not both")
        done = _send(client, body, cluster, gpu_class, dry_run)
    if as_json:
        json_out(done)
        return
    switch = done.placement
    state = "paused" if switch.paused else "open"
    typer.echo(_head(done, f"placement on {switch.kind} {switch.id} is {state}"))
    console().print(reach_table(done.reach))


def _send(
    client: QuotaClient, body: PlacementChange, cluster: str | None, gpu_class: str | None, dry_run: bool
) -> PlacementReply:
    if cluster is not None:
        return client.pause_cluster(cluster, body, dry_run=dry_run)
    if gpu_class is not None:
        return client.pause_gpu_class(gpu_class, body, dry_run=dry_run)
    return client.pause_hub(body, dry_run=dry_run)


def _edit(reason: str, ends_at: str | None, max_gpus: int | None, no_cap: bool) -> GrantEdit:
    if max_gpus is not None and no_cap:
        raise UsageTrouble("name --max-gpus or --no-cap, not both")
    asked: dict[str, Any] = {"reason": reason}
    if ends_at is not None:
        asked["ends_at"] = moment_ms("--ends-at", ends_at)
    if max_gpus is not None or no_cap:
        asked["max_gpus"] = max_gpus
    return GrantEdit.model_validate(asked)


def _head(done: SwitchReply, what: str) -> str:
    if not done.changed:
        return f"{what} already; nothing changes" if done.dry_run else f"{what} already; nothing changed"
    return f"dry run, nothing was done: {what}" if done.dry_run else what


def reach_table(reach: Reach, more: list[tuple[str, str, str]] | None = None) -> object:
    """Whom a switch touches, as a table."""
    rows = [
        _row("waiting jobs it concerns", reach.waiting),
        _row("running attempts", reach.running),
        ("GPU-h they hold", hours(reach.held_gpu_us), ""),
        *(more or []),
    ]
    return table("", ("", ">", "first of them"), rows)


def _row(name: str, found: Affected) -> tuple[str, str, str]:
    shown = ", ".join(found.ids) + (", …" if found.count > len(found.ids) else "")
    return name, str(found.count), shown


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("freeze", no_args_is_help=True, rich_help_panel=OPERATORS)(freeze)
    app.command("unfreeze", no_args_is_help=True, rich_help_panel=OPERATORS)(unfreeze)
    app.command("pause", no_args_is_help=True, rich_help_panel=OPERATORS)(pause)
    app.command("resume", no_args_is_help=True, rich_help_panel=OPERATORS)(resume)
    app.command("placement", rich_help_panel=AUDITORS)(placement)
    app.command("requeue", no_args_is_help=True, rich_help_panel=OPERATORS)(requeue)
