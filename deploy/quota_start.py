"""The quota service's first start under `gpuhub up`: migrate, anchor the clock, make tokens, then serve.

One process does what `gpuhub quota init`, `token` and `serve` do one after the other, because loading them
takes longer than running them. A restart after a crash is a plain `gpuhub quota serve`: the clock stays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from deploy.datadir import AGENT_NODES, HOST, STARTED, DataDir, token_name, write_private
from quota import cli as quota
from quota.schemas.identity import NewToken, Role

LEASE_TTL_S = 15.0
_TIME = re.compile(rb'"t": ?(\d+)')

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def start(
    data_dir: Annotated[Path, typer.Option()],
    port: Annotated[int, typer.Option()],
    clock_speed: Annotated[int, typer.Option()],
    token: Annotated[list[Role] | None, typer.Option(help="Make a token of this role.")] = None,
) -> None:
    """Prepare the database of a data directory and serve it."""
    data = DataDir(data_dir)
    database = data.database_url
    at_least = latest_ms(data.journal)
    started = {"clock": quota.prepare(database, clock_speed, clock_at_least=at_least).text()}
    for role in token or ():
        node = AGENT_NODES if role is Role.AGENT else None
        made = quota.make_token(database, NewToken(role=role, node=node, label="gpuhub up"))
        started[token_name(role)] = made.secret
    write_private(data.path / STARTED, started)
    quota.serve(database, HOST, port, LEASE_TTL_S)


def latest_ms(journal: Path) -> int:
    """The latest business time in the cluster's journal, which a fast clock must not go behind; 0 for none."""
    if not journal.exists():
        return 0
    with journal.open("rb") as lines:
        return max((int(found[1]) for line in lines if (found := _TIME.search(line))), default=0)
