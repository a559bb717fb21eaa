"""The verifier as a program: it stands alone, says what it checked, and ends with a status that a script can use."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy import audit_verify

SOURCE = Path(audit_verify.__file__)


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n").encode()


def _ledger(*rows: dict[str, Any]) -> bytes:
    """A file by hand: one audit row under one seal."""
    row = {"kind": "audit", "id": 1, "seq": 1, "at_ms": 5, "actor": "a", "action": "x", "subject": "s"}
    audit = _line(row | {"reason": "", "detail": "{}", "before": None, "after": None, "address": "::1"})
    seal: dict[str, Any] = {"kind": "seal", "number": 1, "at_ms": 6, "through_seq": 1, "audit_rows": 1}
    seal |= {"transfers": 0, "previous_sha256": "0" * 64}
    seal["sha256"] = hashlib.sha256(audit + _line(seal)).hexdigest()
    header = {"kind": "header", "format": "gpuhub-ledger/1", "at_ms": 7, "seal": 1, "through_seq": 1}
    body = _line(header | {"sha256": seal["sha256"]}) + audit + _line(seal) + b"".join(map(_line, rows))
    counts = {"header": 1, "audit": 1, "seal": 1} | {row["kind"]: 1 for row in rows}
    return body + _line({"kind": "footer", "counts": counts, "sha256": hashlib.sha256(body).hexdigest()})


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the file alone, in a folder of its own, without site packages."""
    alone = folder / "audit_verify.py"
    shutil.copy(SOURCE, alone)
    command = [sys.executable, "-I", "-S", str(alone), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_it_imports_the_standard_library_and_nothing_else() -> None:
    tree = ast.parse(SOURCE.read_text())
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms)
    imported |= {str(node.module).split(".")[0] for node in froms}
    assert imported <= set(sys.stdlib_module_names), imported - set(sys.stdlib_module_names)
    assert {"json", "hashlib"} < imported, "the test sees imports"


def test_a_copy_of_the_one_file_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(_ledger())
    (tmp_path / "ledger.jsonl.gz").write_bytes(gzip.compress(_ledger()))
    for name in ("ledger.jsonl", "ledger.jsonl.gz"):
        ran = _run(name, folder=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("ok: 1 audit lines, 1 header lines, 1 seal lines; 0 statements; seal 1 ")


def test_violations_are_one_line_each_and_status_one(tmp_path: Path) -> None:
    account: dict[str, Any] = {
        "kind": "account",
        "account_kind": "grant",
        "id": "grant:g",
        "parent_id": None,
        "label": None,
    }
    account |= {
        "program_id": "p",
        "organization_id": "o",
        "grant_id": "g",
        "released": True,
        "position": None,
    }
    account |= {"overdraft_thousandths": 0, "granted_gpu_us": "0", "held_gpu_us": "0", "used_gpu_us": "7"}
    (tmp_path / "ledger.jsonl").write_bytes(_ledger(account))
    ran = _run("ledger.jsonl", "--head", "ab", folder=tmp_path)
    assert ran.returncode == 1
    assert ran.stdout.splitlines() == [
        f"file_form line 4: found a account line out of its section, expected {audit_verify.RULES['file_form']}",
        "seal_head ab: found no such seal, expected a seal of this chain",
        "2 violations",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}\n", b"hello\n", b'{"kind":"header","format":"gpuhub-ledger/9"}\n', b"\x1f\x8b\x08"],
)
def test_what_is_no_ledger_cannot_be_checked(content: bytes, tmp_path: Path) -> None:
    for name in ("ledger.jsonl", "ledger.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        ran = _run(name, folder=tmp_path)
        assert (ran.returncode, ran.stderr) == (2, ""), ran.stderr
        assert ran.stdout.startswith("cannot check: ")


def test_a_missing_file_or_argument_is_wrong_usage(tmp_path: Path) -> None:
    assert _run("nothing.jsonl", folder=tmp_path).returncode == 2
    assert _run(folder=tmp_path).returncode == 2
    (tmp_path / "ledger.jsonl").write_bytes(_ledger())
    assert _run("ledger.jsonl", "no-statement.json", folder=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("milliseconds", "gpus", "price", "won"),
    [(3_600_000, 1, 4000, 4000), (450, 1, 4000, 1), (449, 1, 4000, 0), (1_800_000, 1, 1, 1), (0, 8, 4000, 0)],
)
def test_won_are_rounded_half_up(milliseconds: int, gpus: int, price: int, won: int) -> None:
    assert audit_verify._won(milliseconds, gpus, price) == won
