"""Check an exported ledger, and statements against it, without the hub: `gpuhub audit verify` (docs/audit.md).

Python's standard library only, and not a line of the hub's own code: copy this one file away and run it with
`python audit_verify.py LEDGER.jsonl [STATEMENT.json|.csv|.html ...] [--head SHA256]`. The file is read twice: first
as bytes (form, hash, seals), then as a ledger that is lived through row by row. One line per violation:
`rule subject: found …, expected …`. Exit 0: all rules hold; 1: violations; 2: nothing could be checked.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

FORMAT = "gpuhub-ledger/1"
STATEMENT_FORMAT = "gpuhub-statement/1"
HOUR_MS = 3_600_000
GPU_US_PER_HOUR = HOUR_MS * 1000
GENESIS = "0" * 64
GIVEN = ("treasury", "program", "grant", "expired")
LIMITS = ("share", "tranche")

RULES = {
    "file_form": "every line is one canonical JSON object of a known kind, in the order of sections",
    "file_hash": "the footer's SHA-256 and counts are those of the lines before it",
    "feed_order": "rows stand in feed order, and a transaction's transfers are numbered without a gap",
    "seal_chain": "seals are numbered from 1, each names the one before it, the last is the header's",
    "seal_hash": "a seal's SHA-256 and counts are those of the rows that it covers",
    "seal_cover": "every row stands under the seal that covers its sequence",
    "seal_head": "a hash that was written down earlier is in the chain",
    "transfer_once": "no transfer stands in the file twice",
    "transfer_told": "a transfer says who did it and why; an adjustment names its evidence",
    "leg_shape": "a transfer changes the accounts, and those columns, that its type may",
    "conservation": "granted time is only moved: it adds up to nothing over treasury, programmes, grants, expired",
    "account_kind": "an account is what its id says, and a limit account lies in its grant",
    "account_limit": "used + held <= granted + overdraft at every moment, and nothing falls below zero",
    "limits_fit": "a grant's shares together, and its tranches together, come to no more than the grant",
    "balance": "an account's stored balance is the sum of its legs",
    "rate_version": "a transfer's rate is the rate version that it names",
    "charge_arithmetic": "a charge or refund is milliseconds x GPUs x rate",
    "slice_bounds": "slices lie within one hour and follow each other",
    "slice_row": "every settle has its slice, and the slice says the same",
    "hold_once": "an attempt has one hold, it is resolved once, and the release is exactly its rest",
    "hold_cover": "charges never pass their hold and its extensions",
    "hold_row": "a hold's stored sums, path, GPUs and rate are those of its transfers",
    "refund_within": "a refund gives back time of one charge, to who paid it, and none of it twice",
    "grant_owner": "a grant has the owner, and the overdraft, of its award in the audit trail",
    "statement_form": "a statement is one that this program can read",
    "statement_seal": "a statement's seals are those of the chain",
    "statement_owner": "a statement names its account's grant, organization and programme",
    "statement_line": "a statement's lines are the account's transfers, each with its arithmetic",
    "statement_sums": "opening, closing and total are what the ledger's rows come to",
    "statement_issued": "a statement has the SHA-256 under which it was issued",
}


class Unreadable(Exception):
    """There is nothing here that could be checked."""


@dataclass
class Report:
    """What was found wrong, in the order of the file."""

    violations: list[str] = field(default_factory=list)

    def wrong(self, rule: str, subject: object, found: object, expected: object) -> None:
        """Add a violation."""
        assert rule in RULES, rule
        self.violations.append(f"{rule} {subject}: found {found}, expected {expected}")

    def same(self, rule: str, subject: object, found: object, expected: object) -> bool:
        """Add a violation unless both are equal, in JSON's eyes: false is not 0, 1.0 is not 1."""
        if found == expected and _written(found) == _written(expected):
            return True
        self.wrong(rule, subject, found, expected)
        return False


def _written(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; answers the exit code."""
    parser = argparse.ArgumentParser(description="Check an exported ledger, and statements against it.")
    parser.add_argument("ledger", type=Path, help="LEDGER.jsonl or .jsonl.gz of `gpuhub audit export`")
    parser.add_argument("statements", type=Path, nargs="*", help="STATEMENT.json, .csv or .html")
    parser.add_argument("--head", action="append", default=[], help="a seal's SHA-256 written down earlier")
    asked = parser.parse_args(arguments)
    return run(asked.ledger, asked.statements, asked.head, sys.stdout.write)


def run(
    ledger: Path, statements: Iterable[Path], heads: Iterable[str], write: Callable[[str], object]
) -> int:
    """Check the files and write the result; answers the exit code."""
    try:
        report, summary = verify(ledger, list(statements), list(heads))
    except (Unreadable, OSError, EOFError) as error:
        write(f"cannot check: {error}\n")
        return 2
    for violation in report.violations:
        write(violation + "\n")
    if report.violations:
        write(f"{len(report.violations)} violations\n")
        return 1
    write(f"ok: {summary}\n")
    return 0


def verify(ledger: Path, statements: list[Path], heads: list[str]) -> tuple[Report, str]:
    """Both readings. Answers the report and one line that says what was checked. Raises Unreadable, OSError."""
    report = Report()
    first = Bytes(report, heads)
    for content in _raw_lines(ledger):
        first.take(content)
    first.end()
    checked = [_open_statement(report, path, first) for path in statements]
    replay = Replay(report, first, [each for each in checked if each is not None])
    for number, content in enumerate(_raw_lines(ledger), 1):
        if number not in first.spoilt:
            replay.take(json.loads(content))
    replay.end()
    counts = ", ".join(f"{count} {kind} lines" for kind, count in sorted(first.counts.items()))
    seal = f"seal {first.header['seal']} {first.header['sha256']}"
    return report, f"{counts}; {len(checked)} statements; {seal}"


def _raw_lines(path: Path) -> Iterator[bytes]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as source:
        yield from source


# --- first reading: bytes, form, seals ------------------------------------------------------------

_SECTIONS = {"header": 0, "rate": 1, "program": 2, "grant": 3, "account": 4, "hold": 5, "footer": 7}
_AMOUNT = re.compile(r"0|-?[1-9][0-9]{0,19}")
_GOOD: dict[str, Callable[[Any], bool]] = {
    "t": lambda value: isinstance(value, str),
    "tn": lambda value: value is None or isinstance(value, str),
    "n": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "nn": lambda value: value is None or _GOOD["n"](value),
    "a": lambda value: isinstance(value, str) and _AMOUNT.fullmatch(value) is not None,
    "b": lambda value: isinstance(value, bool),
    "l": lambda value: isinstance(value, list),
    "o": lambda value: value is None or isinstance(value, dict),
}
"""Text, number, amount, boolean, list, object; with `n` it may be null."""


def _form(**groups: str) -> dict[str, str]:
    return {name: kind for kind, names in groups.items() for name in names.split()}


_FORMS = {
    "header": _form(t="kind format sha256", n="at_ms seal through_seq"),
    "rate": _form(t="kind id gpu_class", n="rate_thousandths price_krw valid_from_ms"),
    "program": _form(t="kind id name account_id policy_id", n="created_at_ms"),
    "grant": _form(
        t="kind id program_id account_id policy",
        tn="organization_id",
        n="starts_at_ms ends_at_ms created_at_ms",
        nn="expired_at_ms max_gpus",
    ),
    "account": _form(
        t="kind id account_kind",
        tn="parent_id program_id organization_id grant_id label",
        n="overdraft_thousandths",
        nn="position",
        a="granted_gpu_us held_gpu_us used_gpu_us",
        b="released",
    ),
    "hold": _form(
        t="kind id job_id grant_id gpu_class rate_id",
        n="attempt gpus rate_thousandths price_krw extensions",
        a="amount_gpu_us settled_gpu_us released_gpu_us refunded_gpu_us platform_gpu_us",
        l="path",
    ),
    "audit": _form(t="kind actor action subject reason detail", tn="before after address", n="id seq at_ms"),
    "transfer": _form(
        t="kind id type actor reason",
        tn="evidence job_id hold_id slice_id refund_of refund_kind",
        n="seq position at_ms",
        nn="attempt starts_at_ms ends_at_ms gpus",
        a="amount_gpu_us",
        l="legs",
        o="rate",
    ),
    "slice": _form(
        t="kind id job_id payer gpu_class rate_id",
        n="seq attempt starts_at_ms ends_at_ms gpus rate_thousandths price_krw",
        a="amount_gpu_us",
    ),
    "seal": _form(t="kind previous_sha256 sha256", n="number at_ms through_seq audit_rows transfers"),
    "footer": _form(t="kind sha256", o="counts"),
}
_LEG = _form(t="account_id", a="d_granted d_held d_used")
_RATE = _form(t="id gpu_class", n="rate_thousandths price_krw")


class Bytes:
    """Reads the file as bytes: is it whole, canonical, and what the seals say that it is?"""

    def __init__(self, report: Report, heads: list[str]) -> None:
        self.report = report
        self.header: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.spoilt: set[int] = set()
        """Numbers of lines that cannot be read as what they should be."""
        self.refunded: set[str] = set()
        self.seals: dict[int, dict[str, Any]] = {}
        self.issued: dict[tuple[object, ...], str] = {}
        self._heads = heads
        self._line = 0
        self._section = 0
        self._digest = hashlib.sha256()
        self._footer: dict[str, Any] | None = None
        self._chain = _Chain(report)

    def take(self, content: bytes) -> None:
        """The next line."""
        self._line += 1
        row, trouble = _parse(content)
        if self._line == 1:
            if row is None or row.get("kind") != "header" or row.get("format") != FORMAT:
                raise Unreadable(f"this is no file of format {FORMAT}")
            self.header = row
        if self._footer is not None:
            trouble = "a line after the footer"
        if row is not None and trouble is None:
            trouble = self._misplaced(row["kind"])
        if row is None or trouble is not None:
            self.report.wrong("file_form", f"line {self._line}", trouble, RULES["file_form"])
            self.spoilt.add(self._line)
        if row is None or self._footer is not None:
            self._digest.update(content)
            return
        if row["kind"] == "footer":
            self._footer = row
            return
        self._digest.update(content)
        self.counts[row["kind"]] += 1
        if self._line not in self.spoilt:
            self._note(row, content)

    def end(self) -> None:
        """No further line. Raises Unreadable if there was none at all."""
        if not self.header:
            raise Unreadable("the file is empty")
        if self._footer is None:
            self.report.wrong(
                "file_hash", f"line {self._line}", "no footer: the file was cut short", "a footer"
            )
        else:
            self.report.same("file_hash", "footer", self._footer["sha256"], self._digest.hexdigest())
            self.report.same("file_hash", "counts", self._footer["counts"], dict(self.counts))
        self._chain.end(self.header)
        known = {seal["sha256"] for seal in self.seals.values()}
        for head in self._heads:
            if head.lower() not in known:
                self.report.wrong("seal_head", head, "no such seal", "a seal of this chain")

    def _misplaced(self, kind: str) -> str | None:
        section = _SECTIONS.get(kind, 6)
        if section < self._section or (section == 0) != (self._line == 1):
            return f"a {kind} line out of its section"
        self._section = section
        return None

    def _note(self, row: dict[str, Any], content: bytes) -> None:
        match row["kind"]:
            case "audit" | "transfer" | "slice":
                self._chain.add(row, content)
                if row["kind"] == "transfer" and row["refund_of"] is not None:
                    self.refunded.add(row["refund_of"])
                if row["kind"] == "audit" and row["action"] == "statement.issue":
                    self._note_issue(_document(row["detail"]))
            case "seal":
                self._chain.close(row)
                self.seals[row["number"]] = row

    def _note_issue(self, detail: dict[str, Any]) -> None:
        names = ("account_id", "seal", "since_seal", "format", "language")
        self.issued[tuple(detail.get(name) for name in names)] = str(detail.get("sha256"))


class _Chain:
    """Hashes rows until the seal that covers them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._digest = hashlib.sha256()
        self._counts: Counter[str] = Counter()
        self._last: dict[str, Any] = {"number": 0, "sha256": GENESIS, "through_seq": 0, "at_ms": 0}
        self._seq = 0
        """Of the last row that a seal covers."""

    def add(self, row: dict[str, Any], content: bytes) -> None:
        if row["seq"] <= self._last["through_seq"]:
            found = f"seq {row['seq']} after seal {self._last['number']}"
            self._report.wrong("seal_cover", row["id"], found, f"seq > {self._last['through_seq']}")
        if row["kind"] != "slice":
            self._digest.update(content)
            self._counts[row["kind"]] += 1
            self._seq = max(self._seq, row["seq"])

    def close(self, seal: dict[str, Any]) -> None:
        name, last = f"seal {seal['number']}", self._last
        self._report.same("seal_chain", name, seal["number"], last["number"] + 1)
        self._report.same("seal_chain", name, seal["previous_sha256"], last["sha256"])
        if seal["at_ms"] < last["at_ms"]:
            self._report.wrong("seal_chain", name, f"at {seal['at_ms']}", f"at {last['at_ms']} or later")
        self._report.same("seal_cover", name, seal["through_seq"], self._seq)
        counts = (self._counts["audit"], self._counts["transfer"])
        self._report.same("seal_hash", name, (seal["audit_rows"], seal["transfers"]), counts)
        stamp = {key: value for key, value in seal.items() if key != "sha256"}
        self._digest.update(_canonical(stamp))
        self._report.same("seal_hash", name, seal["sha256"], self._digest.hexdigest())
        self._digest, self._counts, self._last = hashlib.sha256(), Counter(), seal

    def end(self, header: dict[str, Any]) -> None:
        if self._counts:
            self._report.wrong("seal_cover", "end of file", f"{sum(self._counts.values())} rows", "a seal")
        for mine, theirs in (("seal", "number"), ("sha256", "sha256"), ("through_seq", "through_seq")):
            self._report.same("seal_chain", f"header {mine}", header[mine], self._last[theirs])


def _parse(content: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """A line as an object of a known kind, and what is wrong with it."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        return None, f"no JSON ({error})"
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or row["kind"] not in _FORMS:
        return None, "no object of a known kind"
    trouble = _misfit(row, _FORMS[row["kind"]]) or _misfit_parts(row)
    if trouble is not None:
        return None, trouble
    return row, None if _canonical(row) == content else "bytes that are not canonical"


def _misfit_parts(row: dict[str, Any]) -> str | None:
    if row["kind"] == "hold":
        return None if all(isinstance(account, str) for account in row["path"]) else "a path that is none"
    if row["kind"] != "transfer":
        return None
    if row["rate"] is not None and _misfit(row["rate"], _RATE):
        return "a rate that is none"
    bad = (not isinstance(leg, dict) or _misfit(leg, _LEG) is not None for leg in row["legs"])
    return "legs that are none" if any(bad) else None


def _misfit(row: dict[str, Any], form: dict[str, str]) -> str | None:
    if row.keys() != form.keys():
        return f"other fields: {', '.join(sorted(row.keys() ^ form.keys()))}"
    return next(
        (f"{name} = {row[name]!r}" for name, kind in form.items() if not _GOOD[kind](row[name])), None
    )


def _document(text: str) -> dict[str, Any]:
    """An audit row's detail; one that is no object says nothing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _canonical(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n").encode()


# --- second reading: the ledger lived through -----------------------------------------------------


@dataclass
class Account:
    """One account: what it is, what is stored, and the sums of the legs so far."""

    kind: str
    row: dict[str, Any]
    granted: int = 0
    held: int = 0
    used: int = 0
    blamed: bool = False

    @property
    def limit(self) -> int:
        """What may be held and used together."""
        return self.granted + max(0, self.granted) * int(self.row["overdraft_thousandths"]) // 1000


@dataclass
class Attempt:
    """One attempt's hold as its transfers tell it."""

    hold_id: str
    path: tuple[str, ...]
    gpus: int
    rate_id: str
    amount: int
    settled: int = 0
    released: int = 0
    refunded: int = 0
    platform: int = 0
    extensions: int = 0
    resolved: bool = False
    settled_through_ms: int = 0


@dataclass
class Charge:
    """A settled slice that is refunded later, and the stretches given back so far with who got them."""

    row: dict[str, Any]
    payer: str
    given_back: list[tuple[int, int, str, str]] = field(default_factory=list)


Leg = tuple[str, int, int, int]


class Replay:
    """Lives through the ledger row by row."""

    def __init__(self, report: Report, first: Bytes, statements: list[Statement]) -> None:
        self._report = report
        self._refunded = first.refunded
        self._statements = statements
        self._rates: dict[str, dict[str, Any]] = {}
        self._grants: dict[str, dict[str, Any]] = {}
        self._accounts: dict[str, Account] = {}
        self._children: dict[str, list[str]] = {}
        self._hold_rows: dict[tuple[str, int], dict[str, Any]] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._charges: dict[str, Charge] = {}
        self._transfers: set[str] = set()
        self._awards: dict[str, dict[str, Any]] = {}
        self._place: tuple[int, int, int] = (0, 0, -1)
        self._position = 0
        self._unsliced: dict[str, dict[str, Any]] = {}
        self._moved: set[str] = set()
        """Grant accounts whose limits are checked when the transaction is complete."""

    def take(self, row: dict[str, Any]) -> None:
        """The next line."""
        match row["kind"]:
            case "rate":
                self._rates[row["id"]] = row
            case "grant":
                self._grants[row["id"]] = row
            case "account":
                self._open(row)
            case "hold":
                self._hold_rows[row["job_id"], row["attempt"]] = row
            case "audit":
                self._stands(row, 0, row["id"])
                if row["action"] == "grant.award":
                    self._awards[row["subject"]] = _document(row["detail"])
            case "transfer":
                self._stands(row, 1, row["position"])
                self._transfer(row)
            case "slice":
                self._stands(row, 2, 0)
                self._slice(row)
            case _:
                pass

    def end(self) -> None:
        """No further line: what is stored must be what was lived through."""
        self._complete()
        for account_id, account in self._accounts.items():
            sums = (account.granted, account.held, account.used)
            stored = tuple(int(account.row[f"{name}_gpu_us"]) for name in ("granted", "held", "used"))
            self._report.same("balance", account_id, stored, sums)
        total = sum(int(a.row["granted_gpu_us"]) for a in self._accounts.values() if a.kind in GIVEN)
        self._report.same("conservation", "all accounts", total, 0)
        for key in sorted(self._hold_rows.keys() | self._attempts.keys()):
            self._stored_hold(key)
        for grant_id, grant in self._grants.items():
            self._owner(grant_id, grant)
        for statement in self._statements:
            statement.end(self._accounts.get(statement.account_id))

    # --- order ------------------------------------------------------------------------------------

    def _stands(self, row: dict[str, Any], kind: int, place: int) -> None:
        if row["seq"] != self._place[0]:
            self._complete()
        here = (row["seq"], kind, place)
        if here < self._place or (here == self._place and kind != 2):
            self._report.wrong("feed_order", row["id"], f"(seq, kind, place) {here}", f"after {self._place}")
        self._place = max(here, self._place)
        if kind == 1:
            self._report.same("feed_order", row["id"], f"position {place}", f"position {self._position}")
            self._position = place + 1

    def _complete(self) -> None:
        """A transaction has ended."""
        self._position = 0
        for slice_id in self._unsliced:
            self._report.wrong("slice_row", slice_id, "no slice", "the slice of this settle")
        self._unsliced.clear()
        for grant_account in sorted(self._moved):
            self._limits_fit(grant_account)
        self._moved.clear()

    # --- accounts ---------------------------------------------------------------------------------

    def _open(self, row: dict[str, Any]) -> None:
        kind = row["account_kind"]
        self._report.same("account_kind", row["id"], kind, row["id"].split(":")[0])
        self._accounts[row["id"]] = Account(kind, row)
        if kind not in LIMITS:
            self._report.same("account_kind", row["id"], row["parent_id"], None)
            return
        self._report.same("account_kind", row["id"], row["parent_id"], f"grant:{row['grant_id']}")
        self._children.setdefault(row["parent_id"], []).append(row["id"])

    def _change(self, transfer_id: str, legs: list[Leg]) -> None:
        for account_id, granted, held, used in legs:
            account = self._accounts[account_id]
            account.granted += granted
            account.held += held
            account.used += used
            if granted and account.kind in ("grant", *LIMITS):
                self._moved.add(account.row["parent_id"] or account_id)
            self._within_limit(transfer_id, account_id, account)

    def _within_limit(self, transfer_id: str, account_id: str, account: Account) -> None:
        least = min(account.held, account.used, 0 if account.kind == "treasury" else account.granted)
        free = account.kind in ("treasury", "platform")
        if (least >= 0 and (free or account.held + account.used <= account.limit)) or account.blamed:
            return
        account.blamed = True  # once: whatever follows would say it again
        found = f"granted {account.granted}, held {account.held}, used {account.used} after {transfer_id}"
        self._report.wrong("account_limit", account_id, found, f"at most {account.limit}, at least 0")

    def _limits_fit(self, grant_account: str) -> None:
        grant = self._accounts.get(grant_account)
        for kind in LIMITS:
            inside = [self._accounts[name] for name in self._children.get(grant_account, ())]
            total = sum(account.granted for account in inside if account.kind == kind)
            if grant is not None and total > grant.granted:
                self._report.wrong(
                    "limits_fit",
                    grant_account,
                    f"{kind}s of {total} at seq {self._place[0]}",
                    f"at most {grant.granted}",
                )

    def _owner(self, grant_id: str, grant: dict[str, Any]) -> None:
        account = self._accounts.get(grant["account_id"])
        row = account.row if account is not None else {}
        found = (row.get("grant_id"), row.get("organization_id"), row.get("program_id"))
        expected = (grant_id, grant["organization_id"], grant["program_id"])
        self._report.same("grant_owner", grant["account_id"], found, expected)
        if grant_id in self._awards:
            self._awarded(grant_id, grant["organization_id"], row, self._awards[grant_id])
        elif account is not None and account.granted:
            self._report.wrong("grant_owner", grant_id, "no award in the trail", "an audit row grant.award")

    def _awarded(
        self, grant_id: str, organization_id: str | None, account: dict[str, Any], award: dict[str, Any]
    ) -> None:
        self._report.same("grant_owner", grant_id, organization_id, award.get("organization_id"))
        policy = award.get("policy")
        allowed = policy.get("overdraft_thousandths", 0) if isinstance(policy, dict) else 0
        found = account.get("overdraft_thousandths")
        self._report.same("grant_owner", f"{grant_id} overdraft", found, allowed)

    # --- transfers --------------------------------------------------------------------------------

    def _transfer(self, row: dict[str, Any]) -> None:
        name = row["id"]
        if name in self._transfers:
            self._report.wrong("transfer_once", name, "another one", "no transfer with this id before")
        self._transfers.add(name)
        if not row["actor"] or not row["reason"] or (row["type"] == "adjust" and not row["evidence"]):
            found = f"actor {row['actor']!r}, reason {row['reason']!r}, evidence {row['evidence']!r}"
            self._report.wrong("transfer_told", name, found, RULES["transfer_told"])
        legs = [_leg(leg) for leg in row["legs"]]
        unknown = [leg[0] for leg in legs if leg[0] not in self._accounts]
        if unknown or len({leg[0] for leg in legs}) != len(legs):
            self._report.wrong(
                "leg_shape", name, f"legs on {[leg[0] for leg in legs]}", "known accounts, once"
            )
            return
        self._shape(row, legs)
        moved = sum(granted for account, granted, _, _ in legs if self._accounts[account].kind in GIVEN)
        self._report.same("conservation", name, moved, 0)
        self._change(name, legs)
        self._rate(row)
        if row["type"] in _OF_AN_ATTEMPT:
            self._of_attempt(row, legs)
        for statement in self._statements:
            statement.take(row, legs)

    def _shape(self, row: dict[str, Any], legs: list[Leg]) -> None:
        kinds = {account: self._accounts[account].kind for account, *_ in legs}
        parents = {account: self._accounts[account].row["parent_id"] for account, *_ in legs}
        programs = {account: self._accounts[account].row["program_id"] for account, *_ in legs}
        expected = _misshapen(row, legs, kinds, parents, programs)
        if expected is not None:
            shown = ", ".join(f"{account} {tuple(parts)}" for account, *parts in legs)
            self._report.wrong(
                "leg_shape", row["id"], f"{row['type']} {row['amount_gpu_us']}: {shown}", expected
            )

    def _rate(self, row: dict[str, Any]) -> None:
        rate = row["rate"]
        if rate is None:
            if row["type"] in ("hold", "extend", "settle", "refund"):
                self._report.wrong("rate_version", row["id"], None, "a rate version")
            return
        known = self._rates.get(rate["id"], {})
        expected = {name: known.get(name) for name in _RATE}
        self._report.same("rate_version", row["id"], rate, expected)
        if row["type"] in ("settle", "refund"):
            parts = (row["starts_at_ms"], row["ends_at_ms"], row["gpus"])
            if None in parts:
                self._report.wrong("charge_arithmetic", row["id"], parts, "a time and GPUs")
                return
            amount = (parts[1] - parts[0]) * parts[2] * rate["rate_thousandths"]
            self._report.same("charge_arithmetic", row["id"], int(row["amount_gpu_us"]), amount)

    # --- holds, slices, refunds -------------------------------------------------------------------

    def _of_attempt(self, row: dict[str, Any], legs: list[Leg]) -> None:
        key, amount = (row["job_id"], row["attempt"]), int(row["amount_gpu_us"])
        path = tuple(account for account, *_ in legs if account != "platform")
        if None in key:
            self._report.wrong(
                "hold_once", row["id"], f"{row['type']} of attempt {key}", "a job and an attempt"
            )
            return
        if row["type"] == "hold":
            self._hold(row, key, path)
            return
        known = self._attempts.get(key)
        if known is None:
            self._report.wrong("hold_once", row["id"], "no hold before it", "the attempt's hold")
            return
        if path:
            self._report.same("hold_row", f"{row['id']} path", path, known.path)
        if row["type"] != "release":
            rate_id = (row["rate"] or {}).get("id", "")
            self._report.same(
                "hold_row", f"{row['id']} gpus, rate", (row["gpus"], rate_id), (known.gpus, known.rate_id)
            )
        known.platform += sum(used for account, _, _, used in legs if account == "platform")
        match row["type"]:
            case "extend":
                known.amount += amount
                known.extensions += 1
                self._still_open(row, known)
            case "settle":
                self._settle(row, known, "grant" if path else "platform")
            case "release":
                self._still_open(row, known)
                self._report.same("hold_once", row["id"], amount, known.amount - known.settled)
                known.released += amount
                known.resolved = True
            case "refund":
                known.refunded += amount if path else 0
                self._refund(row, "grant" if path else "platform")

    def _hold(self, row: dict[str, Any], key: tuple[str, int], path: tuple[str, ...]) -> None:
        if key in self._attempts:
            self._report.wrong("hold_once", row["id"], "a second hold", f"only {self._attempts[key].hold_id}")
            return
        rate_id = (row["rate"] or {}).get("id", "")
        amount = int(row["amount_gpu_us"])
        self._attempts[key] = Attempt(row["id"], path, row["gpus"] or 0, rate_id, amount)

    def _still_open(self, row: dict[str, Any], known: Attempt) -> None:
        if known.resolved:
            self._report.wrong(
                "hold_once", row["id"], f"{row['type']} after {known.hold_id} was resolved", "nothing"
            )

    def _settle(self, row: dict[str, Any], known: Attempt, payer: str) -> None:
        if payer == "grant":
            known.settled += int(row["amount_gpu_us"])
            self._still_open(row, known)
            if known.settled > known.amount:
                self._report.wrong(
                    "hold_cover", row["id"], f"{known.settled} settled", f"at most {known.amount}"
                )
        starts, ends = row["starts_at_ms"] or 0, row["ends_at_ms"] or 0
        hour_end = (starts // HOUR_MS + 1) * HOUR_MS
        if not starts < ends <= hour_end or starts < known.settled_through_ms:
            least = max(known.settled_through_ms, hour_end - HOUR_MS)
            self._report.wrong(
                "slice_bounds", row["id"], f"{starts} to {ends}", f"within {least} to {hour_end}"
            )
        known.settled_through_ms = max(known.settled_through_ms, ends)
        self._report.same("slice_row", row["id"], row["slice_id"], row["id"])
        self._unsliced[row["id"]] = row | {"payer": payer}
        if row["id"] in self._refunded:
            self._charges[row["id"]] = Charge(row, payer)

    def _slice(self, row: dict[str, Any]) -> None:
        settle = self._unsliced.pop(row["id"], None)
        if settle is None:
            self._report.wrong("slice_row", row["id"], "a slice", "its settle in the same transaction")
            return
        rate = settle["rate"] or {}
        names = ("job_id", "attempt", "starts_at_ms", "ends_at_ms", "gpus", "payer", "amount_gpu_us")
        expected = tuple(settle[name] for name in names) + tuple(rate.get(name) for name in _RATE)
        rates = ("rate_id", "gpu_class", "rate_thousandths", "price_krw")
        self._report.same("slice_row", row["id"], tuple(row[name] for name in (*names, *rates)), expected)

    def _refund(self, row: dict[str, Any], payer: str) -> None:
        charge = self._charges.get(row["refund_of"] or "")
        if charge is None:
            self._report.wrong(
                "refund_within", row["id"], f"refund of {row['refund_of']}", "a charge before it"
            )
            return
        starts, ends, kind = row["starts_at_ms"] or 0, row["ends_at_ms"] or 0, row["refund_kind"] or ""
        paid = charge.row
        if not paid["starts_at_ms"] <= starts < ends <= paid["ends_at_ms"]:
            expected = f"within {paid['starts_at_ms']} to {paid['ends_at_ms']}"
            self._report.wrong("refund_within", row["id"], f"{starts} to {ends}", expected)
        same = all(row[name] == paid[name] for name in ("job_id", "attempt", "gpus"))
        if not same:
            self._report.wrong("refund_within", row["id"], "another attempt's time", f"that of {paid['id']}")
        for begin, end, _, got in charge.given_back:
            if got == payer and starts < end and begin < ends:
                self._report.wrong(
                    "refund_within", row["id"], f"{starts} to {ends} again", f"not {begin} to {end}"
                )
        taken_over = any(
            begin <= starts and ends <= end and what != "correction"
            for begin, end, what, _ in charge.given_back
        )
        owed = "platform" if charge.payer == "platform" or taken_over else "grant"
        self._report.same("refund_within", f"{row['id']} payer", payer, owed)
        charge.given_back.append((starts, ends, kind, payer))

    def _stored_hold(self, key: tuple[str, int]) -> None:
        row, known = self._hold_rows.get(key), self._attempts.get(key)
        if row is None or known is None:
            missing = "no hold row" if row is None else "no hold transfer"
            self._report.wrong("hold_row", f"{key[0]}:{key[1]}", missing, "both")
            return
        names = ("amount", "settled", "released", "refunded", "platform")
        found = {name: int(row[f"{name}_gpu_us"]) for name in names}
        self._report.same("hold_row", row["id"], found, {name: getattr(known, name) for name in names})
        same = (row["id"], tuple(row["path"]), row["gpus"], row["rate_id"], row["extensions"])
        expected = (known.hold_id, known.path, known.gpus, known.rate_id, known.extensions)
        self._report.same("hold_row", row["id"], same, expected)
        rate = self._rates.get(row["rate_id"], {})
        for name in ("gpu_class", "rate_thousandths", "price_krw"):
            self._report.same("rate_version", f"{row['id']} {name}", row[name], rate.get(name))
        grant = self._grants.get(row["grant_id"], {})
        if grant.get("account_id") not in known.path:
            self._report.wrong("hold_row", row["id"], f"path {known.path}", f"with {grant.get('account_id')}")


def _leg(leg: dict[str, Any]) -> Leg:
    return leg["account_id"], int(leg["d_granted"]), int(leg["d_held"]), int(leg["d_used"])


# --- what a type may change -----------------------------------------------------------------------

_OF_AN_ATTEMPT = ("hold", "extend", "settle", "release", "refund")
_MOVES = {
    "deposit": {("treasury", "program"), ("program", "grant")},
    "pullback": {("grant", "program")},
    "expire": {("grant", "expired")},
    "transfer": {("grant", "grant"), ("expired", "grant")},
    "adjust": {(source, target) for source in GIVEN for target in GIVEN},
}
_SAME_PROGRAM = ("deposit", "pullback", "expire")


def _misshapen(
    row: dict[str, Any],
    legs: list[Leg],
    kinds: dict[str, str],
    parents: dict[str, str | None],
    programs: dict[str, str | None],
) -> str | None:
    """What the legs should be, or None if they are."""
    kind, amount = row["type"], int(row["amount_gpu_us"])
    if amount <= 0:
        return "an amount of more than 0"
    if kind in _MOVES:
        if any(held or used for _, _, held, used in legs):
            return "only granted time changes"
        if kind == "transfer" and all(kinds[account] in LIMITS for account in kinds):
            return _misshapen_earmark(amount, legs, parents)
        return _misshapen_move(kind, amount, legs, kinds, parents, programs)
    on_platform = [leg for leg in legs if kinds[leg[0]] == "platform"]
    path = [leg for leg in legs if kinds[leg[0]] != "platform"]
    if path and not _is_path([leg[0] for leg in path], kinds, parents):
        return "legs on one grant and at most one share and one tranche of it"
    changes = {
        "hold": (0, amount, 0),
        "extend": (0, amount, 0),
        "release": (0, -amount, 0),
        "settle": (0, -amount, amount),
        "refund": (0, 0, -amount),
    }.get(kind)
    if changes is None:
        return "a known type"
    if any(leg[1:] != changes for leg in path):
        return f"{changes} on every account of the path"
    return _misshapen_platform(row, amount, path, on_platform)


def _misshapen_platform(
    row: dict[str, Any], amount: int, path: list[Leg], on_platform: list[Leg]
) -> str | None:
    takes_over = row["type"] == "refund" and row["refund_kind"] in ("fault", "preempted")
    alone = {"settle": amount, "refund": -amount}.get(row["type"])
    if row["type"] == "refund" and row["refund_kind"] not in ("correction", "fault", "preempted"):
        return "a refund of a known kind"
    expected = None if path and not takes_over else amount if takes_over else alone
    if not path and (takes_over or alone is None):
        return "legs on a grant"
    found = [leg[1:] for leg in on_platform]
    if found != ([] if expected is None else [(0, 0, expected)]):
        return "no leg on platform" if expected is None else f"(0, 0, {expected}) on platform"
    return None


def _is_path(accounts: list[str], kinds: dict[str, str], parents: dict[str, str | None]) -> bool:
    grants = [account for account in accounts if kinds[account] == "grant"]
    limits = [account for account in accounts if kinds[account] in LIMITS]
    return (
        len(grants) == 1
        and len(grants) + len(limits) == len(accounts)
        and len({kinds[account] for account in limits}) == len(limits)
        and all(parents[account] == grants[0] for account in limits)
    )


def _misshapen_earmark(amount: int, legs: list[Leg], parents: dict[str, str | None]) -> str | None:
    if len(set(parents.values())) != 1:
        return "limit accounts of one grant"
    given = sum(max(0, leg[1]) for leg in legs)
    taken = sum(max(0, -leg[1]) for leg in legs)
    return None if amount == max(given, taken) else f"an amount of {max(given, taken)}"


def _misshapen_move(
    kind: str,
    amount: int,
    legs: list[Leg],
    kinds: dict[str, str],
    parents: dict[str, str | None],
    programs: dict[str, str | None],
) -> str | None:
    main = [leg for leg in legs if kinds[leg[0]] in GIVEN]
    cut = [leg for leg in legs if kinds[leg[0]] not in GIVEN]
    sources = [leg[0] for leg in main if leg[1] == -amount]
    targets = [leg[0] for leg in main if leg[1] == amount]
    if len(main) != 2 or len(sources) != 1 or len(targets) != 1:
        return f"-{amount} on one account and +{amount} on another"
    source, target = sources[0], targets[0]
    if (kinds[source], kinds[target]) not in _MOVES[kind]:
        return f"a way of {kind}: {sorted(_MOVES[kind])}"
    if kind in _SAME_PROGRAM and kinds[source] != "treasury" and programs[source] != programs[target]:
        return "accounts of one programme"
    if any(kinds[leg[0]] not in LIMITS or parents[leg[0]] != source or leg[1] >= 0 for leg in cut):
        return "further legs only less on limit accounts of the source"
    return None


# --- statements -----------------------------------------------------------------------------------

_TYPE_WORDS = {
    "배정": "deposit",
    "예약": "hold",
    "연장": "extend",
    "정산": "settle",
    "예약 해제": "release",
    "환불": "refund",
    "이전": "transfer",
    "회수": "pullback",
    "소멸": "expire",
    "조정": "adjust",
}


class Statement:
    """One statement, checked while the ledger is lived through."""

    def __init__(self, report: Report, name: str, document: dict[str, Any], first: Bytes) -> None:
        self.account_id = str(document["account_id"])
        self._report = report
        self._name = name
        self._document = document
        self._first = first
        self._lines = iter(document["lines"])
        self._balance = [0, 0, 0]
        self._opening: tuple[int, int, int] | None = None
        self._total_krw = 0
        self._since_seq = self._seal_seq("since")
        sealed = self._seal_seq("seal")
        self._seq = sealed if document["seal"] is not None else int(document["seq"])
        if self._seq > first.header["through_seq"]:
            report.wrong("statement_seal", name, f"seq {self._seq}", f"at most {first.header['through_seq']}")

    def take(self, row: dict[str, Any], legs: list[Leg]) -> None:
        """A transfer of the ledger."""
        changes = next((leg[1:] for leg in legs if leg[0] == self.account_id), None)
        if changes is None or row["seq"] > self._seq:
            return
        if row["seq"] > self._since_seq and self._opening is None:
            self._opening = (self._balance[0], self._balance[1], self._balance[2])
        self._balance = [sum(pair) for pair in zip(self._balance, changes, strict=True)]
        if row["seq"] <= self._since_seq:
            return
        expected = _statement_line(row, changes, self._balance[0] - self._balance[1] - self._balance[2])
        self._total_krw += expected["krw"]
        found = next(self._lines, None)
        if found is None:
            self._report.wrong("statement_line", f"{self._name} {row['id']}", "no line", "a line")
            return
        if "cells" in found:
            self._differences(found["cells"], _cells(expected), row["id"])
        else:
            self._differences(found, expected, row["id"])

    def end(self, account: Account | None) -> None:
        """The whole ledger was read."""
        for extra in self._lines:
            name = extra.get("transfer_id", extra.get("cells", {}).get("transfer"))
            self._report.wrong(
                "statement_line", f"{self._name} {name}", "a line", "no such transfer of the account"
            )
        opening = self._opening if self._opening is not None else tuple(self._balance)
        granted, held, used = self._balance
        sums = dict(zip(("granted", "held", "used"), opening, strict=True))
        self._same("statement_sums", "opening", {f"{key}_gpu_us": str(value) for key, value in sums.items()})
        closing = {"granted": granted, "held": held, "used": used, "available": granted - held - used}
        for key, value in closing.items():
            self._same("statement_sums", f"{key}_gpu_us", str(value))
            if self._document["format"] == STATEMENT_FORMAT:
                self._same("statement_sums", f"{key}_gpu_hours", _hours(value))
        self._same("statement_sums", "total_krw", self._total_krw)
        row = account.row if account is not None else {}
        for key in ("grant_id", "organization_id", "program_id"):
            self._same("statement_owner", key, row.get(key))

    def _same(self, rule: str, key: str, expected: object) -> None:
        self._report.same(rule, f"{self._name} {key}", self._document[key], expected)

    def _differences(self, found: dict[str, Any], expected: dict[str, Any], transfer_id: str) -> None:
        for key in expected | found:
            name = f"{self._name} {transfer_id} {key}"
            self._report.same("statement_line", name, found.get(key, "nothing"), expected.get(key, "nothing"))

    def _seal_seq(self, key: str) -> int:
        """The last sequence under a seal that the statement names, as the ledger's file says."""
        stamp = self._document[key]
        if stamp is None:
            return 0
        seal = self._first.seals.get(stamp["number"])
        if seal is None:
            self._report.wrong(
                "statement_seal", f"{self._name} {key}", f"seal {stamp['number']}", "one of this chain"
            )
            return 0
        expected = {
            "number": seal["number"],
            "at": _instant(seal["at_ms"]),
            "through_seq": seal["through_seq"],
            "sha256": seal["sha256"],
        }
        self._report.same(
            "statement_seal", f"{self._name} {key}", stamp, {name: expected[name] for name in stamp}
        )
        if key == "seal":
            self._report.same(
                "statement_seal", f"{self._name} as_of", self._document["as_of"], expected["at"]
            )
            if self._document["format"] != "csv":  # a table of cells has no such cell
                self._report.same(
                    "statement_seal", f"{self._name} seq", self._document["seq"], seal["through_seq"]
                )
        return int(seal["through_seq"])


def _open_statement(report: Report, path: Path, first: Bytes) -> Statement | None:
    """A statement to check; None if it cannot be read, or is one to look at and only its hash can be checked."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if path.suffix == ".html":
        if sha256 not in first.issued.values():
            report.wrong(
                "statement_issued",
                path.name,
                sha256,
                "the SHA-256 of a statement issued by the file's last seal; a newer one needs a newer export",
            )
        return None
    try:
        document = _read_csv(content) if path.suffix == ".csv" else _read_json(content)
        known = (
            document["account_id"],
            (document["seal"] or {}).get("number"),
            (document["since"] or {}).get("number", 0),
        )
        for key, issued in first.issued.items():
            if (*known, path.suffix[1:]) == key[:4] and document["language"] in (None, key[4]):
                report.same("statement_issued", path.name, sha256, issued)
        return Statement(report, path.name, document, first)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, csv.Error) as error:
        report.wrong("statement_form", path.name, f"{type(error).__name__}: {error}", STATEMENT_FORMAT)
        return None


def _read_json(content: bytes) -> dict[str, Any]:
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != STATEMENT_FORMAT:
        raise ValueError("another format")
    if document.keys() != _STATEMENT:
        raise ValueError(f"other fields: {', '.join(sorted(document.keys() ^ _STATEMENT))}")
    if not isinstance(document["lines"], list) or not all(
        isinstance(line, dict) for line in document["lines"]
    ):
        raise ValueError("lines that are none")
    return {"language": None} | document


def _read_csv(content: bytes) -> dict[str, Any]:
    """The table from opening to closing balance, an empty row, then eight pairs of name and value."""
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    empty = rows.index([])
    table, facts = rows[1:empty], [value for _, value in rows[empty + 1 :]]
    if len(facts) != 8 or {len(row) for row in rows[:empty]} != {len(_CELLS)}:
        raise ValueError("a CSV of another form")
    grant_id, organization_id, program_id, account_id, since, as_of, seal, _ = facts
    opening, closing = table[0], table[-1]
    names = ("granted_gpu_us", "held_gpu_us", "used_gpu_us", "available_gpu_us")
    return {
        "format": "csv",
        "language": "en" if rows[0][1] == "Time" else "ko",
        "grant_id": grant_id,
        "organization_id": organization_id or None,
        "program_id": program_id,
        "account_id": account_id,
        "as_of": as_of,
        "seq": None,
        "seal": _csv_seal(seal),
        "since": _csv_since(since),
        "opening": dict(zip(names[:3], opening[17:20], strict=True)),
        **dict(zip(names, closing[17:21], strict=True)),
        "total_krw": int(closing[16]),
        "lines": [{"cells": _named_cells(number, cells)} for number, cells in enumerate(table[1:-1], 1)],
    }


def _csv_seal(text: str) -> dict[str, Any]:
    number, sha256 = text.split(" ")
    return {"number": int(number), "sha256": sha256}


def _csv_since(text: str) -> dict[str, Any] | None:
    if not text.endswith(")"):
        return None
    at, number, sha256 = text.rstrip(")").replace("(", "").split(" ")
    return {"at": at, "number": int(number), "sha256": sha256}


_STATEMENT = {
    *("format", "grant_id", "organization_id", "program_id", "account_id", "as_of", "seq", "seal", "since"),
    *("opening", "lines", "granted_gpu_us", "held_gpu_us", "used_gpu_us", "available_gpu_us"),
    *("granted_gpu_hours", "held_gpu_hours", "used_gpu_hours", "available_gpu_hours", "total_krw"),
}
_CELLS = (
    *("line", "at", "type", "reason", "actor", "evidence", "job", "attempt", "starts_at", "ends_at"),
    *("milliseconds", "gpus", "gpu_class", "rate", "rate_id", "price_krw", "krw"),
    *("granted", "held", "used", "available", "slice", "refund_of", "transfer"),
)


def _named_cells(number: int, cells: list[str]) -> dict[str, str]:
    found = dict(zip(_CELLS, cells, strict=True))
    if found.pop("line") != str(number):
        raise ValueError(f"row {number} is numbered otherwise")
    found["type"] = _TYPE_WORDS.get(found["type"], found["type"])
    return found


def _cells(line: dict[str, Any]) -> dict[str, str]:
    part = line["slice"] or {}
    values = {
        "at": line["at"],
        "type": line["type"],
        "reason": _harmless(line["reason"]),
        "actor": _harmless(line["actor"]),
        "evidence": _harmless(line["evidence"]),
        "job": line["job_id"],
        "attempt": line["attempt"],
        **{name: part.get(name) for name in ("starts_at", "ends_at", "milliseconds", "gpus", "gpu_class")},
        "rate": part.get("rate_thousandths"),
        "rate_id": part.get("rate_id"),
        "price_krw": part.get("price_krw"),
        "krw": line["krw"] if part else None,
        **{name: line[f"{name}_gpu_us"] for name in ("granted", "held", "used", "available")},
        "slice": line["slice_id"],
        "refund_of": line["refund_of"],
        "transfer": _harmless(line["transfer_id"]),
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}


def _harmless(text: str | None) -> str | None:
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text


def _statement_line(row: dict[str, Any], changes: tuple[int, ...], available: int) -> dict[str, Any]:
    granted, held, used = changes
    part, krw = None, 0
    if row["rate"] is not None and None not in (row["starts_at_ms"], row["ends_at_ms"], row["gpus"]):
        milliseconds, rate = row["ends_at_ms"] - row["starts_at_ms"], row["rate"]
        krw = _won(milliseconds, row["gpus"], rate["price_krw"]) * (1 if used >= 0 else -1)
        part = {
            "starts_at": _instant(row["starts_at_ms"]),
            "ends_at": _instant(row["ends_at_ms"]),
            "milliseconds": milliseconds,
            "gpus": row["gpus"],
            "gpu_class": rate["gpu_class"],
            "rate_id": rate["id"],
            "rate_thousandths": rate["rate_thousandths"],
            "price_krw": rate["price_krw"],
        }
    same = (
        "seq",
        "type",
        "actor",
        "reason",
        "evidence",
        "job_id",
        "attempt",
        "slice_id",
        "refund_of",
        "refund_kind",
    )
    return {name: row[name] for name in same} | {
        "transfer_id": row["id"],
        "at": _instant(row["at_ms"]),
        "granted_gpu_us": str(granted),
        "held_gpu_us": str(held),
        "used_gpu_us": str(used),
        "available_gpu_us": str(available),
        "krw": krw,
        "slice": part,
    }


def _won(milliseconds: int, gpus: int, price_krw: int) -> int:
    """Rounded half up."""
    whole, rest = divmod(milliseconds * gpus * price_krw, HOUR_MS)
    return whole + (2 * rest >= HOUR_MS)


def _hours(amount_gpu_us: int) -> str:
    hours = (Decimal(amount_gpu_us) / GPU_US_PER_HOUR).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
    return f"{hours.normalize():f}" if hours else "0"


def _instant(moment_ms: int) -> str:
    if not 0 <= moment_ms < 253_402_300_800_000:
        return f"{moment_ms} ms, a time that RFC 3339 cannot write"
    moment = datetime.fromtimestamp(moment_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment_ms % 1000:03d}Z"


if __name__ == "__main__":
    sys.exit(main())
