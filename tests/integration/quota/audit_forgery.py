"""Forging a ledger's file: parsed rows to change, and what a forger would do next: count, hash and seal them anew."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from deploy import audit_verify

Row = dict[str, Any]


class Forgery:
    """A ledger's file in a forger's hands."""

    def __init__(self, content: bytes) -> None:
        self.rows: list[Row] = [json.loads(line) for line in content.splitlines()]

    def find(self, kind: str, test: Callable[[Row], bool] = lambda _: True, /, **equal: object) -> Row:
        """The first row like this."""
        return self.all(kind, test, **equal)[0]

    def all(self, kind: str, test: Callable[[Row], bool] = lambda _: True, /, **equal: object) -> list[Row]:
        found = [
            row
            for row in self.rows
            if row["kind"] == kind and all(row[name] == value for name, value in equal.items()) and test(row)
        ]
        assert found, f"no {kind} is {equal}"
        return found

    def remove(self, row: Row) -> None:
        self.rows = [each for each in self.rows if each is not row]

    def put_after(self, row: Row, new: Row) -> Row:
        place = next(place for place, each in enumerate(self.rows) if each is row)
        self.rows.insert(place + 1, new)
        return new

    def repeat(self, row: Row, **changes: object) -> Row:
        """The row once more behind itself; transfers of the transaction are numbered on."""
        return self.put_after(row, deepcopy(row) | changes)

    def number(self) -> None:
        """Number every transaction's transfers without a gap."""
        counted = Counter[int]()
        for row in self.all("transfer"):
            row["position"] = counted[row["seq"]]
            counted[row["seq"]] += 1

    def restore_sums(self) -> None:
        """Make the stored balances those of the legs."""
        sums: dict[str, list[int]] = {}
        for row in self.all("transfer"):
            for leg in row["legs"]:
                parts = sums.setdefault(leg["account_id"], [0, 0, 0])
                for place, name in enumerate(("d_granted", "d_held", "d_used")):
                    parts[place] += int(leg[name])
        for account in self.all("account"):
            for name, total in zip(
                ("granted", "held", "used"), sums.get(account["id"], (0, 0, 0)), strict=True
            ):
                account[f"{name}_gpu_us"] = str(total)

    def seal(self) -> None:
        """Seal what stands here anew, so that no hash tells what was changed."""
        last: Row = {"number": 0, "sha256": "0" * 64}
        digest, counts = hashlib.sha256(), Counter[str]()
        seq = 0
        for row in self.rows:
            if row["kind"] in ("audit", "transfer"):
                digest.update(_line(row))
                counts[row["kind"]] += 1
                seq = max(seq, row["seq"])
            if row["kind"] == "seal":
                row |= {"number": last["number"] + 1, "previous_sha256": last["sha256"], "through_seq": seq}
                row |= {"audit_rows": counts["audit"], "transfers": counts["transfer"]}
                del row["sha256"]
                digest.update(_line(row))
                row["sha256"] = digest.hexdigest()
                digest, counts, last = hashlib.sha256(), Counter[str](), row
        self.rows[0] |= {"seal": last["number"], "sha256": last["sha256"], "through_seq": seq}

    def close(self) -> None:
        """Count and hash the lines for the footer."""
        body = self.rows[:-1]
        self.rows[-1]["counts"] = dict(Counter(row["kind"] for row in body))
        self.rows[-1]["sha256"] = hashlib.sha256(b"".join(map(_line, body))).hexdigest()

    def content(self) -> bytes:
        return b"".join(map(_line, self.rows))


def shift(row: Row, name: str, by: int) -> None:
    """Add to an amount in text, or to a number."""
    row[name] = str(int(row[name]) + by) if isinstance(row[name], str) else row[name] + by


def leg_of(row: Row, account: str) -> Row:
    """The transfer's leg on the first account whose id begins so."""
    return next(leg for leg in row["legs"] if leg["account_id"].startswith(account))


def rules_broken(folder: Path, ledger: bytes, *statements: tuple[str, bytes], head: str = "") -> list[str]:
    """The rules of the violations that the verifier finds, in order."""
    path = folder / "ledger.jsonl"
    path.write_bytes(ledger)
    paths = []
    for name, content in statements:
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    report, _ = audit_verify.verify(path, paths, [head] if head else [])
    return [violation.split(" ")[0] for violation in report.violations]


def _line(row: Row) -> bytes:
    return (json.dumps(row, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n").encode()
