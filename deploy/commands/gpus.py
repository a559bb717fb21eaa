"""`gpuhub gpus`: the inventory by UUID, how healthy each GPU is, quarantine and its circuit breaker."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, json_out, moment, table
from quota.client.paging import every
from quota.schemas.gpus import (
    ExpectedGpu,
    Gpu,
    GpuChange,
    GpuPolicy,
    GpuPolicyDocument,
    GpuPolicyPut,
    Inventory,
    InventoryReply,
    InventoryState,
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
Uuid = Annotated[str, typer.Argument(help="Its UUID, such as GPU-6f9619ff-….")]
COLUMNS = ("gpu_uuid", "serial", "asset_number", "site", "node", "gpu_class", "model", "expected")
BATCH = 1000
NAMES = tuple(GpuPolicy.model_fields)

gpus_app = typer.Typer(
    no_args_is_help=True, help="GPUs by UUID: inventory, health, quarantine, circuit breaker."
)


@gpus_app.command("list")
def list_gpus(
    node: Annotated[str | None, typer.Option(help="Those of one node.")] = None,
    site: Annotated[str | None, typer.Option(help="Those of one site.")] = None,
    state: Annotated[InventoryState | None, typer.Option(help="Those that the inventory calls so.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Those out of use.")] = False,
    as_json: Json = False,
) -> None:
    """List GPUs: where they are, how healthy, who took them out of use."""
    with service() as client:
        found = [
            gpu
            for gpu in every(client.list_gpus, node=node, site=site, inventory_state=state)
            if gpu.quarantine or not quarantined
        ]
    if as_json:
        json_out(found)
        return
    rows = [
        (
            gpu.gpu_uuid,
            gpu.node,
            gpu.gpu_class,
            gpu.serial,
            gpu.asset_number,
            gpu.site,
            gpu.inventory.value,
            _health(gpu),
            _use(gpu),
        )
        for gpu in found
    ]
    columns = ("GPU", "node", "class", "serial", "asset", "site", "inventory", "health", "use")
    console().print(table("", columns, rows))


@gpus_app.command("show")
def show(gpu: Uuid, as_json: Json = False) -> None:
    """Show one GPU with its latest verdicts and what followed from each."""
    with service() as client:
        found = client.read_gpu(gpu)
    if as_json:
        json_out(found)
        return
    _tell(found.gpu)
    rows = [
        (
            moment(each.at),
            each.rule,
            "" if each.xid is None else str(each.xid),
            each.health.value,
            each.outcome,
            each.detail,
        )
        for each in found.verdicts
    ]
    console().print(table("verdicts", ("at", "rule", ">XID", "health", "outcome", "what"), rows))


@gpus_app.command("quarantine")
def quarantine(gpu: Uuid, reason: Why, as_json: Json = False) -> None:
    """Take a GPU out of use by hand; its node takes no new jobs unless it withdrew the GPU. What runs goes on."""
    _change(gpu, GpuChange(quarantined=True, reason=reason), as_json)


@gpus_app.command("release")
def release(gpu: Uuid, reason: Why, as_json: Json = False) -> None:
    """Let a GPU be used again, whoever took it out of use; only a new sign takes it out again."""
    _change(gpu, GpuChange(quarantined=False, reason=reason), as_json)


@gpus_app.command("register")
def register(
    gpu: Uuid,
    reason: Why,
    serial: Annotated[str, typer.Option(help="The serial number that it should have.")] = "",
    asset: Annotated[str, typer.Option(help="The number of its asset tag.")] = "",
    site: Annotated[str, typer.Option(help="Where it stands.")] = "",
    node: Annotated[str, typer.Option(help="The node that it should be in.")] = "",
    gone: Annotated[bool, typer.Option("--gone", help="Take it out of the inventory.")] = False,
    as_json: Json = False,
) -> None:
    """Say that a GPU should be there, with its asset number and site; the line replaces the one before."""
    line = _line(
        f"gpu {gpu}",
        {
            "gpu_uuid": gpu,
            "serial": serial,
            "asset_number": asset,
            "site": site,
            "node": node,
            "expected": not gone,
        },
    )
    _register([line], reason, as_json)


@gpus_app.command("import")
def import_inventory(
    file: Annotated[Path, typer.Argument(help="CSV with a header of: " + ", ".join(COLUMNS), dir_okay=False)],
    reason: Why,
    as_json: Json = False,
) -> None:
    """Take over an inventory from a CSV file; GPUs that it does not name stay as they are."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(_lines(csv.DictReader(opened)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageTrouble(f"{file}: {error}") from error
    if not lines:
        raise UsageTrouble(f"{file}: no GPU stands in it")
    _register(lines, reason, as_json)


@gpus_app.command("policy")
def policy(
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE, such as auto_thousandths=50. Names: " + ", ".join(NAMES)),
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, if something changes.")] = None,
    as_json: Json = False,
) -> None:
    """Show what agents' verdicts may do by themselves, or change some of it; what is not named stays."""
    with service() as client:
        found = client.read_gpu_policy()
        if changes:
            if reason is None:
                raise UsageTrouble("a change needs a --reason")
            wanted = found.policy.model_dump(mode="json") | dict(_named(text) for text in changes)
            body = GpuPolicyPut.model_validate_json(json.dumps({"policy": wanted, "reason": reason}))
            found = client.put_gpu_policy(body, found.etag)
    if as_json:
        json_out(found)
    else:
        _tell_policy(found)


def _named(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign or name not in NAMES:
        raise UsageTrouble(f"{text!r} is not NAME=VALUE with one of these names: {', '.join(NAMES)}")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise UsageTrouble(f"{text!r}: {value!r} is neither a number nor true or false") from error


def _lines(rows: csv.DictReader[str]) -> Iterator[ExpectedGpu]:
    names = rows.fieldnames or ()
    unknown = sorted(set(names) - set(COLUMNS))
    if unknown or "gpu_uuid" not in names:
        wrong = f"unknown column {unknown[0]!r}" if unknown else "no column gpu_uuid"
        raise UsageTrouble(f"{wrong}; columns are {', '.join(COLUMNS)}")
    for row in rows:
        fields: dict[str, Any] = {name: (row[name] or "").strip() for name in names}
        if "expected" in fields:
            fields["expected"] = fields["expected"].lower() not in ("false", "no", "0")
        yield _line(f"line {rows.line_num}", fields)


def _line(where: str, fields: dict[str, Any]) -> ExpectedGpu:
    try:
        return ExpectedGpu.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageTrouble(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _register(lines: list[ExpectedGpu], reason: str, as_json: bool) -> None:
    changed = unchanged = 0
    with service() as client:
        for start in range(0, len(lines), BATCH):
            body = Inventory(gpus=tuple(lines[start : start + BATCH]), reason=reason)
            reply = client.register_gpus(body)
            changed, unchanged = changed + reply.changed, unchanged + reply.unchanged
    if as_json:
        json_out(InventoryReply(changed=changed, unchanged=unchanged))
    else:
        typer.echo(f"{changed} changed, {unchanged} as they were")


def _change(gpu: str, change: GpuChange, as_json: bool) -> None:
    with service() as client:
        changed = client.change_gpu(gpu, change)
    if as_json:
        json_out(changed)
    else:
        _tell(changed)


def _tell(gpu: Gpu) -> None:
    rows = [
        ("GPU", gpu.gpu_uuid),
        ("model", gpu.model or "not known"),
        ("serial, asset, site", " · ".join(filter(None, (gpu.serial, gpu.asset_number, gpu.site)))),
        ("node", " · ".join(filter(None, (gpu.node, gpu.pci_bus_id, gpu.driver)))),
        ("inventory", gpu.inventory.value),
        ("health", _health(gpu)),
        ("use", _use(gpu)),
        ("last seen", "never" if gpu.last_seen is None else moment(gpu.last_seen)),
    ]
    console().print(table("", ("", ""), rows))


def _tell_policy(found: GpuPolicyDocument) -> None:
    rows = [(name, str(value)) for name, value in found.policy.model_dump(mode="json").items()]
    rows += [
        ("GPUs that count", str(found.fleet_gpus)),
        ("verdicts may take out of use", str(found.most_gpus)),
        ("verdicts took out of use", str(found.out_of_use_gpus)),
        ("withheld, for you to decide", str(found.withheld_gpus)),
    ]
    console().print(table("", ("", ">"), rows))


def _health(gpu: Gpu) -> str:
    if gpu.health is None:
        return "never seen"
    return gpu.health.value if not gpu.rule else f"{gpu.health.value} ({gpu.rule})"


def _use(gpu: Gpu) -> str:
    if gpu.quarantine:
        return f"quarantined by {gpu.quarantine}: {gpu.quarantine_reason}"
    return "in use, verdict withheld" if gpu.withheld else "in use"
