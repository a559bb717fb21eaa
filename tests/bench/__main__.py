"""`make bench`: run the benchmarks, print a table, write `build/bench.json`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

BENCHES = ("ledger", "steps", "api", "year", "cycle", "up", "replay", "agent")
LONG = ("fragmentation", "fairness", "muri", "eta", "kubernetes-fill", "kubernetes-kueue")
"""Only when they are named: they take 7 to 20 minutes, the last two need what `make controlplane` builds."""


def main() -> int:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    known = (*BENCHES, *LONG)
    parser.add_argument("only", nargs="*", help=f"of {', '.join(known)}; default the first {len(BENCHES)}")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(known))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}")
    rows: list[dict[str, Any]] = []
    for name in options.only or BENCHES:
        print(f"bench {name} …", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.bench.{name.replace('-', '_')}").run()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    print(
        f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; {options.output}"
    )
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, one a line."""
    head = ("bench", "metric", "value", "unit", "limit", "ratio")
    lines = [head, *(tuple(_text(row.get(name)) for name in head) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
