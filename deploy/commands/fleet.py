"""`gpuhub node` and `gpuhub class`: the fleet (operators)."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.commands.switches import DryRun, reach_table
from deploy.session import UsageTrouble, service
from deploy.show import JsonOption, console, json_out, moment, table, won
from quota.client import QuotaClient
from quota.client.paging import every
from quota.schemas.fleet import NewGpuClass, Node, NodeChange

Json = Annotated[bool, JsonOption]
NodeArgument = Annotated[str, typer.Argument(help="CLUSTER/NODE, or NODE if only one cluster has it.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]

node_app = typer.Typer(no_args_is_help=True, help="List, cordon and uncordon nodes.")
class_app = typer.Typer(no_args_is_help=True, help="List and set GPU classes, their rates and prices.")


@node_app.command("list")
def list_nodes(as_json: Json = False) -> None:
    """List nodes: what they have, what the hub gave away, what others use."""
    with service() as client:
        found = list(every(client.list_nodes))
    if as_json:
        json_out(found)
        return
    rows = [
        (
            node.cluster,
            node.node,
            node.rack or "",
            capacity.gpu_class,
            *_counts(capacity.total, capacity.used, capacity.foreign),
            _state(node),
        )
        for node in found
        for capacity in node.capacities
    ]
    columns = ("cluster", "node", "rack", "class", ">total", ">used", ">foreign", ">free", "state")
    console().print(table("", columns, rows))


@node_app.command("cordon")
def cordon(node: NodeArgument, reason: Why, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Keep new jobs off a node; running ones go on."""
    _change_node(node, NodeChange(cordoned=True, reason=reason), dry_run, as_json)


@node_app.command("uncordon")
def uncordon(
    node: NodeArgument, reason: Why = "back in service", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Let a node take jobs again."""
    _change_node(node, NodeChange(cordoned=False, reason=reason), dry_run, as_json)


@class_app.command("list")
def list_classes(as_json: Json = False) -> None:
    """List GPU classes with their present rates."""
    with service() as client:
        found = list(every(client.list_gpu_classes))
    if as_json:
        json_out(found)
        return
    rows = [
        (
            item.id,
            item.name,
            f"{item.rate_thousandths / 1000:g}",
            won(item.price_krw),
            moment(item.valid_from),
        )
        for item in found
    ]
    console().print(table("", ("class", "name", ">rate", ">won per GPU-h", "since"), rows))


@class_app.command("set")
def set_class(
    class_id: Annotated[str, typer.Argument(help="Such as h100 or h100-1g.10gb.")],
    rate: Annotated[int, typer.Option(help="Thousandths of the reference GPU's hour: 1000 = an H100.")],
    price: Annotated[int, typer.Option(help="Won for one hour on one GPU.")],
    name: Annotated[str | None, typer.Option(help="Its full name; default: the id.")] = None,
    as_json: Json = False,
) -> None:
    """Add a GPU class, or give it a new rate for what starts from now on."""
    with service() as client:
        made = client.put_gpu_class(
            NewGpuClass(id=class_id, name=name or class_id, rate_thousandths=rate, price_krw=price)
        )
    if as_json:
        json_out(made)
    else:
        ratio = f"{made.rate_thousandths / 1000:g}"
        typer.echo(f"{made.id}: rate {ratio}, {won(made.price_krw)} per GPU-h ({made.rate_id})")


def _counts(total: int, used: int, foreign: int) -> tuple[str, ...]:
    return tuple(str(n) for n in (total, used, foreign, total - used - foreign))


def _state(node: Node) -> str:
    if node.cordoned:
        return "cordoned"
    if node.held_back:
        return "bad GPU"
    return "ready" if node.schedulable else "unavailable"


def _change_node(name: str, change: NodeChange, dry_run: bool, as_json: bool) -> None:
    with service() as client:
        cluster, node = _find_node(client, name)
        changed = client.change_node(cluster, node, change, dry_run=dry_run)
    if as_json:
        json_out(changed)
        return
    typer.echo(f"{changed.cluster}/{changed.node}: {_state(changed)}" + (" (dry run)" if dry_run else ""))
    console().print(reach_table(changed.reach))


def _find_node(client: QuotaClient, name: str) -> tuple[str, str]:
    cluster, slash, node = name.partition("/")
    if slash:
        return cluster, node
    clusters = [item.cluster for item in every(client.list_nodes) if item.node == name]
    if len(clusters) != 1:
        known = "no cluster has it" if not clusters else f"clusters {', '.join(clusters)} have it"
        raise UsageTrouble(f"node {name!r}: {known}; name it CLUSTER/NODE (see `gpuhub node list`)")
    return clusters[0], name
