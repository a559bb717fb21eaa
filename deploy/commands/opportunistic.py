"""`gpuhub opportunistic`: what a programme pays opportunistic jobs from, and what one of them may ask for."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from deploy.durations import duration_s, duration_text
from deploy.moments import moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, hours, json_out, moment, table
from quota.client import QuotaClient, ServiceProblem
from quota.clock import instant_text
from quota.schemas.funds import Fund, FundPut
from quota.schemas.values import exact_hours_text

Json = Annotated[bool, JsonOption]
Programme = Annotated[str, typer.Argument(help="The programme.")]

fund_app = typer.Typer(
    no_args_is_help=True, help="Jobs on idle GPUs, paid by a programme and first to be stopped."
)


@fund_app.command("show")
def show(program: Programme, as_json: Json = False) -> None:
    """Show what a programme pays opportunistic jobs from."""
    with service() as client:
        _tell(client.read_fund(program), as_json)


@fund_app.command("set")
def put(
    program: Programme,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    gpu_hours: Annotated[
        str | None, typer.Option(help="All that it is given of the programme's budget, used hours included.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Its end: '2026-12-31 23:59' in Seoul, or RFC 3339.")
    ] = None,
    pays: Annotated[
        bool | None, typer.Option("--on/--off", help="Whether it pays for new jobs and new starts.")
    ] = None,
    max_gpus: Annotated[
        str | None, typer.Option(help="GPUs that opportunistic jobs may have in use at once; or none.")
    ] = None,
    walltime: Annotated[str | None, typer.Option(help="The longest time limit of one job: 24h.")] = None,
    grace: Annotated[
        str | None, typer.Option(help="The longest grace of one job, which others wait for: 2m.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a programme pay for opportunistic jobs, change what it lets them have, or let it pay no longer.

    What is left out stays as it is; the first time, and after its end, hours and end have to be said.
    """
    with service() as client:
        before = _read(client, program)
        wanted = _kept(before)
        wanted |= {
            name: value
            for name, value in (
                ("gpu_hours", gpu_hours),
                ("ends_at", None if until is None else instant_text(moment_ms("--until", until))),
                ("pays", pays),
                ("max_gpus", _gpus(max_gpus)),
                ("job_walltime_s", _seconds("--walltime", walltime)),
                ("job_grace_s", _seconds("--grace", grace)),
            )
            if value is not None
        }
        if max_gpus == "none":
            wanted["max_gpus"] = None
        missing = {"gpu_hours", "ends_at"} - wanted.keys()
        if missing:
            raise UsageTrouble(f"{program} pays from nothing yet: say --gpu-hours and --until")
        body = FundPut.model_validate_json(json.dumps(wanted | {"reason": reason}))
        stored = client.put_fund(program, body, None if before is None else before.etag)
    _tell(stored, as_json)


def _read(client: QuotaClient, program: str) -> Fund | None:
    try:
        return client.read_fund(program)
    except ServiceProblem as problem:
        if problem.status == 404:
            return None
        raise


def _kept(before: Fund | None) -> dict[str, Any]:
    if before is None:
        return {}
    same = before.model_dump(
        mode="json", include={"ends_at", "pays", "max_gpus", "job_walltime_s", "job_grace_s"}
    )
    return same | {"gpu_hours": exact_hours_text(before.granted_gpu_us)}


def _gpus(text: str | None) -> int | None:
    if text is None or text == "none":
        return None
    if not text.isdecimal():
        raise UsageTrouble(f"--max-gpus {text!r} is neither a number nor none")
    return int(text)


def _seconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return duration_s(text)
    except ValueError as error:
        raise UsageTrouble(f"{option}: {error}") from error


def _tell(found: Fund, as_json: bool) -> None:
    if as_json:
        json_out(found)
        return
    rows = [
        ("pays for new starts", "yes" if found.pays else "no"),
        ("granted, GPU-h", hours(found.granted_gpu_us)),
        ("used, GPU-h", hours(found.used_gpu_us)),
        ("held, GPU-h", hours(found.held_gpu_us)),
        ("available, GPU-h", hours(found.available_gpu_us)),
        ("until (KST)", moment(found.ends_at)),
        ("GPUs at once", "whatever is idle" if found.max_gpus is None else str(found.max_gpus)),
        ("walltime of one job", duration_text(found.job_walltime_s)),
        ("grace of one job", duration_text(found.job_grace_s)),
    ]
    title = f"opportunistic jobs of {found.program_id}, paid from {found.grant_id}"
    console().print(table(title, ("what", ">value"), rows))


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(fund_app, name="opportunistic", rich_help_panel=OPERATORS)
