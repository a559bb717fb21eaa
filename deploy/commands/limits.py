"""`gpuhub limits`, `gpuhub share` and `gpuhub tranche`: how a grant is divided among parties and over milestones."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer

from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, hours, json_out, table
from quota.schemas.limits import (
    GrantLimits,
    LimitBalance,
    NewTranche,
    NewTranches,
    Share,
    ShareChange,
    ShareMove,
    Tranche,
    TrancheChange,
    TrancheRelease,
)

Json = Annotated[bool, JsonOption]
Hours = Annotated[str, typer.Option("--hours", help="GPU hours of the reference GPU, such as 1500 or 0.5.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
Key = Annotated[str | None, typer.Option(help="Idempotency-Key: the same request twice is done once.")]
GrantId = Annotated[str, typer.Argument(help="The grant's id; see `gpuhub balance`.")]
Party = Annotated[str, typer.Argument(help="The party's organization.")]
Position = Annotated[int, typer.Argument(help="Which tranche, counted from 1.", min=1, max=20)]

share_app = typer.Typer(no_args_is_help=True, help="Divide a grant among the parties of a consortium.")
tranche_app = typer.Typer(no_args_is_help=True, help="Divide a grant over its milestones.")


def limits(grant_id: GrantId, as_json: Json = False) -> None:
    """Show a grant's shares, tranches and cap; a party sees its own share."""
    with service() as client:
        found = client.read_limits(grant_id)
    if as_json:
        json_out(found)
    else:
        _tell_limits(found)


@share_app.command("set")
def set_share(
    grant_id: GrantId,
    organization: Party,
    gpu_hours: Hours,
    reason: Why,
    as_json: Json = False,
) -> None:
    """Set how many GPU hours a party may use in all; 0 closes its share for new starts."""
    with service() as client:
        body = ShareChange.model_validate({"gpu_hours": gpu_hours, "reason": reason})
        made = client.put_share(grant_id, organization, body)
    _tell_shares((made,), as_json)


@share_app.command("move")
def move_share(
    grant_id: GrantId,
    giver: Annotated[str, typer.Option("--from", help="The organization that gives.")],
    taker: Annotated[str, typer.Option("--to", help="The organization that gets.")],
    gpu_hours: Hours,
    reason: Why,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Move hours that a party neither used nor holds to another party."""
    asked = {"from_organization_id": giver, "to_organization_id": taker}
    with service() as client:
        body = ShareMove.model_validate(asked | {"gpu_hours": gpu_hours, "reason": reason})
        moved = client.move_share(grant_id, body, key or uuid4().hex)
    _tell_shares(moved.items, as_json)


@tranche_app.command("open")
def open_tranches(
    grant_id: GrantId,
    parts: Annotated[
        list[str],
        typer.Option("--part", help="HOURS:LABEL, such as '2400:start'; once per tranche, in order."),
    ],
    reason: Why,
    first_locked: Annotated[bool, typer.Option("--first-locked", help="Lock the first one too.")] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Divide a grant into tranches, once; all but the first stay locked until they are released."""
    with service() as client:
        body = NewTranches(tranches=tranche_parts(parts), first_released=not first_locked, reason=reason)
        made = client.open_tranches(grant_id, body, key or uuid4().hex)
    _tell_tranches(made.items, as_json)


@tranche_app.command("set")
def set_tranche(
    grant_id: GrantId,
    position: Position,
    gpu_hours: Hours,
    reason: Why,
    as_json: Json = False,
) -> None:
    """Set how many GPU hours a tranche has in all."""
    with service() as client:
        body = TrancheChange.model_validate({"gpu_hours": gpu_hours, "reason": reason})
        changed = client.put_tranche(grant_id, position, body)
    _tell_tranches((changed,), as_json)


@tranche_app.command("release")
def release_tranche(
    grant_id: GrantId,
    position: Position,
    reason: Why,
    evidence: Annotated[str, typer.Option(help="What shows it: a report's number, a paper and its hash.")],
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Release the next tranche; what the earlier ones have left moves into it."""
    with service() as client:
        body = TrancheRelease(reason=reason, evidence=evidence)
        released = client.release_tranche(grant_id, position, body, key or uuid4().hex)
    _tell_tranches(released.items, as_json)


def tranche_parts(parts: list[str]) -> tuple[NewTranche, ...]:
    """Tranches from `HOURS:LABEL` as typed. Raises UsageTrouble."""
    made = []
    for part in parts:
        gpu_hours, colon, label = part.partition(":")
        if not colon or not label.strip():
            raise UsageTrouble(f"--part {part!r} is not HOURS:LABEL, such as '2400:start'")
        made.append(NewTranche.model_validate({"gpu_hours": gpu_hours.strip(), "label": label.strip()}))
    return tuple(made)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command("limits", no_args_is_help=True)(limits)
    app.add_typer(share_app, name="share")
    app.add_typer(tranche_app, name="tranche", rich_help_panel=OPERATORS)


def _tell_limits(found: GrantLimits) -> None:
    out = console()
    if found.max_gpus is not None:
        in_use = "" if found.gpus_in_use is None else f", {found.gpus_in_use} in use"
        out.print(f"at most {found.max_gpus} GPUs at once{in_use}")
    if found.shares:
        _tell_shares(found.shares, as_json=False)
    if found.tranches:
        _tell_tranches(found.tranches, as_json=False)
    if found.max_gpus is None and not found.shares and not found.tranches:
        typer.echo("no shares, no tranches, no cap")


def _tell_shares(shares: tuple[Share, ...], as_json: bool) -> None:
    if as_json:
        json_out(shares)
        return
    rows = [
        (share.organization_id, "open" if share.open else "closed", *_cells(share.balance))
        for share in shares
    ]
    columns = ("party", "share", ">granted", ">used", ">held", ">available")
    console().print(table("GPU hours of each party", columns, rows))


def _tell_tranches(tranches: tuple[Tranche, ...], as_json: bool) -> None:
    if as_json:
        json_out(tranches)
        return
    rows = [
        (str(part.position), part.label, "released" if part.released else "locked", *_cells(part.balance))
        for part in tranches
    ]
    columns = (">tranche", "waits for", "state", ">granted", ">used", ">held", ">available")
    console().print(table("GPU hours of each tranche", columns, rows))


def _cells(balance: LimitBalance | None) -> tuple[str, ...]:
    if balance is None:
        return ("-",) * 4
    amounts = (
        balance.granted_gpu_us,
        balance.used_gpu_us,
        balance.held_gpu_us,
        balance.available_gpu_us,
    )
    return tuple(hours(amount) for amount in amounts)
