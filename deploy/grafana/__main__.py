"""`python -m deploy.grafana` writes every dashboard's JSON anew; `--check` only says which file is not up to date."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from deploy.grafana.boards import BOARDS

with warnings.catch_warnings():
    # Grafana's next schema is announced at the import of its present one
    warnings.simplefilter("ignore", DeprecationWarning)
    from deploy.grafana.sdk import dashboard_json

HERE = Path(__file__).parent / "dashboards"


def main(arguments: list[str]) -> int:
    """Status 0, or 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file differs")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the files are")
    chosen = parser.parse_args(arguments)
    wanted = {chosen.folder / f"{board.uid}.json": dashboard_json(board) for board in BOARDS}
    there = set(chosen.folder.glob("*.json"))
    wrong = [path for path, text in wanted.items() if path not in there or path.read_text("utf-8") != text]
    too_many = sorted(there - set(wanted))
    if chosen.check:
        for path in [*wrong, *too_many]:
            sys.stderr.write(f"{path.name} is not what deploy/grafana makes; run: make dashboards\n")
        return int(bool(wrong or too_many))
    for path in wrong:
        path.write_text(wanted[path], "utf-8")
    for path in too_many:
        path.unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
