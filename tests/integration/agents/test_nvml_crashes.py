"""Kill -9 of an agent that knows pods, between any two of its statements: nothing is lost, doubled or another job's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from quota.schemas.usage import EvidenceBatch
from tests.integration.agents.agent_stubs import ROOT
from tests.integration.agents.dying_life import RATIOS, STAYS
from tests.unit.agents.agent_world import Service
from tests.unit.agents.nvml_life import truth

MINUTES = 40

pytestmark = pytest.mark.crash

STATEMENTS = [
    # with a change of holders
    *(("DELETE FROM holdings", n) for n in (1, 3)),
    ("INSERT INTO holdings", 6),
    # with a cycle's storing
    ("INSERT INTO evidence", 25),
    ("INSERT OR REPLACE", 26),
    ("DELETE FROM evidence", 13),
    ("UPDATE agent", 14),
    # of both kinds, and of a delivery's marking: ends of transactions, and their beginnings
    *(("COMMIT", n) for n in (20, 21, 22, 23)),
    *(("BEGIN", n) for n in (30, 31)),
    ("UPDATE evidence", 9),
]


@dataclass(frozen=True)
class Case:
    """How both processes of a case ended, and what the service was told by them."""

    statuses: list[int]
    told: Path


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Case]:
    folder = tmp_path_factory.mktemp("dying")
    said = subprocess.run(
        [sys.executable, "-m", "tests.integration.agents.dying_life", str(folder), str(MINUTES)],
        cwd=ROOT,
        input=json.dumps(STATEMENTS),
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    statuses = [
        json.loads(line) for line in said.stdout.splitlines() if line.startswith("[-") or line == "[0, 0]"
    ]
    assert len(statuses) == len(STATEMENTS), said
    return {
        statement: Case(ended, folder / str(number) / "told")
        for number, (statement, ended) in enumerate(zip(STATEMENTS, statuses, strict=True))
    }


@pytest.mark.parametrize("statement", STATEMENTS, ids=str)
def test_dying_before_any_statement_loses_and_doubles_nothing(
    cases: dict[tuple[str, int], Case], statement: tuple[str, int]
) -> None:
    case = cases[statement]
    assert case.statuses == [-signal.SIGKILL, 0]
    service = Service()
    for line in case.told.read_text().splitlines():
        service.deliver_evidence(EvidenceBatch.model_validate_json(line))
    assert service.totals() == truth(STAYS, RATIOS, MINUTES * 60_000)
    assert len({row.agent_epoch for row in service.rows.values()}) == 1
