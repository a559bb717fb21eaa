"""Whatever stands in a file, the verifier says what is wrong and never breaks itself; no changed byte goes unseen."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import audit_verify
from tests import databases
from tests.integration.quota.audit_forgery import Forgery, rules_broken
from tests.integration.quota.audit_world import a_busy_hub, ledger_of, statement_of

VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 5, 10**20, "", "0", "-1", "1" * 19, "x", "platform", "grant:x"),
    *("hold", "refund", "fault", "share", [], {}, [{}], [[]], 1.5, {"number": 1}),
)


class Files:
    """A ledger's file and a statement; a class of its own, because failing tests print what they were given."""

    def __init__(self, ledger: bytes, statement: bytes) -> None:
        self.ledger = ledger
        self.statement = statement


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    world = a_busy_hub(databases.new_sqlite(tmp_path_factory.mktemp("fuzz")))
    return Files(ledger_of(world.hub), statement_of(world, world.plain))


def _broken(ledger: bytes, *statements: tuple[str, bytes]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return rules_broken(Path(folder), ledger, *statements)
        except audit_verify.Unreadable:
            return ["cannot check"]


@settings(max_examples=150)
@given(place=st.integers(0, 10**9), byte=st.integers(0, 255))
def test_no_changed_byte_goes_unseen(files: Files, place: int, byte: int) -> None:
    content = bytearray(files.ledger)
    content[place % len(content)] = byte
    changed = bytes(content) != files.ledger
    assert bool(_broken(bytes(content))) is changed


@settings(max_examples=200)
@given(seed=st.integers(0, 2**64))
def test_any_value_anywhere_under_new_seals_is_judged_without_breaking(files: Files, seed: int) -> None:
    chance = random.Random(seed)
    forgery = Forgery(files.ledger)
    for row in chance.sample(
        [row for row in forgery.rows[1:-1] if row["kind"] != "seal"], chance.randint(1, 3)
    ):
        row[chance.choice(sorted(set(row) - {"kind", "seq"}))] = chance.choice(VALUES)
    forgery.seal()
    forgery.close()
    _broken(forgery.content(), ("s.json", files.statement))


@settings(max_examples=200)
@given(seed=st.integers(0, 2**64))
def test_any_value_anywhere_in_a_statement_is_found(files: Files, seed: int) -> None:
    chance = random.Random(seed)
    document = json.loads(files.statement)
    places = [document, document["opening"], document["seal"], chance.choice(document["lines"])]
    place = chance.choice(places)
    name = chance.choice(sorted(place))
    before = json.dumps(document)
    place[name] = chance.choice(VALUES)
    changed = json.dumps(document) != before
    broken = _broken(files.ledger, ("s.json", json.dumps(document).encode()))
    assert any(rule.startswith("statement_") for rule in broken) is changed, name


def test_seq_that_says_nothing_is_found(files: Files) -> None:
    document = json.loads(files.statement) | {"seq": None}
    broken = _broken(files.ledger, ("s.json", json.dumps(document).encode()))
    assert "statement_seal" in broken
