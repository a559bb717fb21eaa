"""The `gpuhub replay` command."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from scheduler.core.policy import PRESETS
from scheduler.replay import contest, packing, plots, published, report
from scheduler.replay.figures import Figures
from scheduler.replay.settings import LedgerKind, Settings, arrange
from scheduler.replay.traces import BadTrace, Kind, read_trace, recognize

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)

POOL, PLAY, OUT = "The pool", "How it is played", "What is written"
NAMES = ", ".join(PRESETS)

ABOUT = """Play a trace of GPU jobs through the hub's own scheduler, in virtual time.

Months pass in a minute or two. Compare policies side by side: how long jobs wait, who gets what was granted, how
full the GPUs are. Standard output has the table, standard error tells how far it is.

    gpuhub replay shared/traces/ms-itp-elasticflow --gpus 1000 --policy fifo-skip,gpuhub

    gpuhub replay jobs.csv --nodes 16 --gpus-per-node 8 --json figures.json --svg plots

TRACE is one of: Microsoft ITP (raw-traces.tar.gz, or its directory); a Philly trace of Muri (trace1.csv.gz); a CSV
with the header `organization,submit_s,gpus,run_s` and, if limits are known, `limit_s`; Alibaba's openb (a
directory), which is packed and not replayed.
"""


@dataclass(frozen=True, slots=True)
class Output:
    """Where the figures go besides standard output."""

    json: Path | None
    csv: Path | None
    svg: Path | None


@app.command(help=ABOUT, epilog="Exit codes: 0 done · 2 wrong usage, or a trace that cannot be read")
def replay(
    trace: Annotated[Path, typer.Argument(help="The trace: a file or a directory.", show_default=False)],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Only count so many GPUs, without nodes.", rich_help_panel=POOL)
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="So many nodes.", rich_help_panel=POOL)] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each node.", rich_help_panel=POOL)] = 8,
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"One or several, comma-separated, or `all`: {NAMES}. Else gpuhub.", show_default=False
        ),
    ] = None,
    format: Annotated[Kind | None, typer.Option(help="What TRACE is, if it cannot be told.")] = None,
    days: Annotated[
        float,
        typer.Option(min=0.001, help="Term of the grants; they share its capacity.", rich_help_panel=PLAY),
    ] = 60.0,
    ledger: Annotated[
        LedgerKind,
        typer.Option(
            help="soft: money never refuses. hard: the rest of the grant has to hold GPUs x limit.",
            rich_help_panel=PLAY,
        ),
    ] = LedgerKind.SOFT,
    load: Annotated[
        float, typer.Option(min=0.001, help="Let jobs come so much faster.", rich_help_panel=PLAY)
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(help="Turn each organization's submissions round in the term.", rich_help_panel=PLAY),
    ] = None,
    organizations: Annotated[
        int | None,
        typer.Option(min=1, help="Spread the jobs over so many organizations by seed.", rich_help_panel=PLAY),
    ] = None,
    every_s: Annotated[
        int, typer.Option(min=0, help="Decide only so often; 0: at every event.", rich_help_panel=PLAY)
    ] = 0,
    until_days: Annotated[
        float | None, typer.Option(min=0.001, help="Stop after so many days.", rich_help_panel=PLAY)
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="openb: the mean over so many shuffles.", rich_help_panel=PLAY)
    ] = 3,
    checkpoint_min: Annotated[
        int, typer.Option(min=0, help="A job saves its work so often; 0: always.", rich_help_panel=PLAY)
    ] = 60,
    restart_min: Annotated[
        int,
        typer.Option(min=0, help="A start after a preemption costs each GPU so much.", rich_help_panel=PLAY),
    ] = 10,
    json: Annotated[
        Path | None, typer.Option(help="Write all figures to this file.", rich_help_panel=OUT)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the table's rows to this file.", rich_help_panel=OUT)
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(help="Write three plots to this directory.", rich_help_panel=OUT)
    ] = None,
) -> None:
    output = Output(json, csv, svg)
    try:
        kind = format or recognize(trace)
        if kind is Kind.OPENB:
            dispatch_openb(trace, policy, seeds, output)
            return
        names = _policies(policy or "gpuhub", tuple(PRESETS))
        _look(output)
        nodes, gpus_per_node = _pool(gpus, nodes, gpus_per_node)
        settings = Settings(
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            days=days,
            ledger=ledger,
            load=load,
            seed=seed,
            organizations=organizations,
            every_s=every_s,
            until_days=until_days,
            checkpoint_s=checkpoint_min * 60,
            restart_s=restart_min * 60,
        )
        read = read_trace(trace, kind)
    except BadTrace as error:
        _refuse(str(error))
    found = contest.play(names, arrange(read, settings), settings)
    typer.echo(report.text(found, settings, str(trace)), nl=False)
    if kind is Kind.MURI and (name := published.name_of(trace, read)):
        typer.echo(published.beside(name, found, settings), nl=False)
    _write(found, settings, str(trace), output)


def dispatch_openb(trace: Path, policy: str | None, seeds: int, output: Output) -> None:
    """The one door to packing: an openb trace is packed node by node, not replayed in time."""
    if output.csv or output.svg:
        _refuse("an openb trace is packed: there is a table and --json, neither --csv nor --svg")
    names = _policies(policy or "all", packing.POLICIES)
    _look(output)
    try:
        results = packing.run(trace, seeds=seeds, policies=names)
    except OSError as error:
        _refuse(f"{error.filename or trace}: cannot be read: {error.strerror}; an openb trace is a directory")
    typer.echo(packing.print_table(results))
    if output.json:
        output.json.write_text(json_text.dumps([asdict(row) for row in results], indent=1), encoding="utf-8")


def _write(found: Sequence[Figures], settings: Settings, trace: str, output: Output) -> None:
    if output.json:
        output.json.write_text(report.as_json(found, settings, trace), encoding="utf-8")
    if output.csv:
        output.csv.write_text(report.as_csv(found), encoding="utf-8")
    if output.svg:
        for name, picture in plots.plots(found).items():
            (output.svg / name).write_text(picture, encoding="utf-8")


def _pool(gpus: int | None, nodes: int | None, gpus_per_node: int) -> tuple[int, int]:
    """Nodes and GPUs per node; GPUs that are only counted are one node."""
    if gpus is not None and nodes is not None:
        _refuse("--gpus counts GPUs, --nodes places jobs on nodes; give one of them")
    if gpus is not None:
        return 1, gpus
    if nodes is None:
        _refuse("say how large the pool is: --gpus 1000, or --nodes 125 --gpus-per-node 8")
    return nodes, gpus_per_node


def _policies(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    names = tuple(name.strip() for name in text.split(","))
    if names == ("all",):
        return tuple(known)
    for name in names:
        if name not in known:
            _refuse(f"--policy: there is no {name!r}; there are {', '.join(known)}, and all")
        if names.count(name) > 1:
            _refuse(f"--policy: {name!r} is given twice")
    return names


def _look(output: Output) -> None:
    """Refuse now rather than after minutes what could not be written."""
    try:
        for path in (output.json, output.csv):
            if path and (path.is_dir() or not path.absolute().parent.is_dir()):
                _refuse(f"{path} cannot be written: it is a directory, or its directory does not exist")
        if output.svg:
            output.svg.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"{output.svg} cannot be made: {error.strerror}")


def _refuse(why: str) -> NoReturn:
    typer.echo(f"gpuhub replay: {why}", err=True)
    raise typer.Exit(2)
