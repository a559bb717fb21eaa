"""The verifier finds what was planted: in each case a forger changed the file, and one rule must say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest

from deploy import audit_verify
from tests import databases
from tests.integration.quota.audit_forgery import Forgery, Row, leg_of, rules_broken, shift
from tests.integration.quota.audit_world import World, a_busy_hub, ledger_of

Forge = Callable[[Forgery], object]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return a_busy_hub(databases.new_sqlite(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def ledger(world: World) -> bytes:
    return ledger_of(world.hub)


def test_the_busy_hub_breaks_no_rule_and_has_every_type_of_transfer(ledger: bytes, tmp_path: Path) -> None:
    assert rules_broken(tmp_path, ledger) == []
    types = {row["type"] for row in Forgery(ledger).all("transfer")}
    assert types == {
        *("deposit", "hold", "extend", "settle", "release"),
        *("refund", "transfer", "pullback", "expire", "adjust"),
    }


def test_sealing_anew_what_was_not_changed_changes_nothing(ledger: bytes) -> None:
    """The forger's own seal and footer are right, so what the cases below find is what they planted."""
    forgery = Forgery(ledger)
    forgery.seal()
    forgery.number()
    forgery.restore_sums()
    forgery.close()
    assert forgery.content() == ledger


# --- a forger who cannot seal: only the file's last line is written anew --------------------------------

UNSEALED: dict[str, tuple[str, Forge]] = {
    "an amount was raised": (
        "seal_hash",
        lambda f: shift(f.find("transfer", type="settle"), "amount_gpu_us", 1),
    ),
    "a leg was changed": ("seal_hash", lambda f: shift(_leg(f, "hold"), "d_held", -1)),
    "a reason was changed": ("seal_hash", lambda f: f.find("transfer", type="pullback").update(reason="ok")),
    "an evidence was changed": (
        "seal_hash",
        lambda f: f.find("transfer", type="adjust").update(evidence="x"),
    ),
    "a price was changed": ("seal_hash", lambda f: _rate(f).update(price_krw=1)),
    "an audit row was deleted": ("seal_hash", lambda f: f.remove(f.find("audit", action="grant.cut"))),
    "an actor was changed": ("seal_hash", lambda f: f.find("audit").update(actor="somebody")),
    "an after was changed": (
        "seal_hash",
        lambda f: f.find("audit", lambda row: row["after"]).update(after="{}"),
    ),
    "an address was changed": ("seal_hash", lambda f: f.find("audit").update(address="10.0.0.1")),
    "a time was changed": ("seal_hash", lambda f: shift(f.find("transfer"), "at_ms", 1)),
    "two audit rows were swapped": ("feed_order", lambda f: _swap(f, *f.all("audit")[:2])),
    "a seal was left out": ("seal_chain", lambda f: f.remove(f.all("seal")[1])),
    "a seal names another one before it": (
        "seal_chain",
        lambda f: f.all("seal")[1].update(previous_sha256="1" * 64),
    ),
    "a seal counts otherwise": ("seal_hash", lambda f: shift(f.find("seal"), "transfers", 1)),
    "the header names another seal": ("seal_chain", lambda f: f.rows[0].update(sha256="1" * 64)),
    "a row was put behind its seal": (
        "seal_cover",
        lambda f: _put_behind(f, f.all("audit")[0], f.find("seal")),
    ),
    "a row stands after the last seal": ("seal_cover", lambda f: _after_last_seal(f)),
    "the last seal was left out": ("seal_cover", lambda f: f.remove(f.all("seal")[-1])),
}


@pytest.mark.parametrize("case", UNSEALED)
def test_a_change_without_new_seals_is_found(case: str, ledger: bytes, tmp_path: Path) -> None:
    rule, forge = UNSEALED[case]
    forgery = Forgery(ledger)
    forge(forgery)
    forgery.close()
    assert rule in rules_broken(tmp_path, forgery.content())


# --- a forger who seals everything anew: only what the rows say can tell --------------------------------


def _grow_all(forgery: Forgery, kind: str, by: int) -> None:
    """One transfer of this type grows on every leg, and its amount with it."""
    row = forgery.all("transfer", type=kind)[0]
    shift(row, "amount_gpu_us", by)
    for leg in row["legs"]:
        for name in ("d_granted", "d_held", "d_used"):
            if leg[name] != "0":
                shift(leg, name, by if int(leg[name]) > 0 else -by)


RESEALED: dict[str, tuple[str, Forge]] = {
    "a settle grew by one": ("charge_arithmetic", lambda f: _grow_all(f, "settle", 1)),
    "a refund grew by one": ("charge_arithmetic", lambda f: _grow_all(f, "refund", 1)),
    "a refund has no time": (
        "charge_arithmetic",
        lambda f: f.find("transfer", type="refund").update(gpus=None),
    ),
    "a deposit lost a leg": ("leg_shape", lambda f: f.find("transfer", type="deposit")["legs"].pop()),
    "a deposit has no legs": ("leg_shape", lambda f: f.find("transfer", type="deposit").update(legs=[])),
    "a hold of a negative amount": (
        "leg_shape",
        lambda f: shift(f.find("transfer", type="hold"), "amount_gpu_us", -(10**13)),
    ),
    "a leg on an unknown account": ("leg_shape", lambda f: _leg(f, "hold").update(account_id="grant:x")),
    "a settle also changes granted": ("leg_shape", lambda f: shift(_leg(f, "settle"), "d_granted", 1)),
    "a hold on a share only": (
        "leg_shape",
        lambda f: _on_share(f)["legs"].remove(leg_of(_on_share(f), "grant:")),
    ),
    "a fault without the platform": (
        "leg_shape",
        lambda f: _fault(f)["legs"].remove(leg_of(_fault(f), "platform")),
    ),
    "a refund of another kind": ("leg_shape", lambda f: _fault(f).update(refund_kind="correction")),
    "an expiry into a programme": (
        "leg_shape",
        lambda f: leg_of(f.find("transfer", type="expire"), "expired").update(account_id="program:ax"),
    ),
    "an unknown type": ("leg_shape", lambda f: f.find("transfer", type="release").update(type="gift")),
    "an earmark of another amount": ("leg_shape", lambda f: shift(_earmark(f), "amount_gpu_us", 1)),
    "an earmark on two grants": (
        "account_kind",
        lambda f: f.find("account", account_kind="share").update(parent_id="grant:x"),
    ),
    "granted time out of nothing": (
        "conservation",
        lambda f: shift(leg_of(f.find("transfer", type="expire"), "expired"), "d_granted", 5),
    ),
    "stored time out of nothing": (
        "conservation",
        lambda f: shift(f.find("account", account_kind="program"), "granted_gpu_us", 5),
    ),
    "a stored balance differs": (
        "balance",
        lambda f: shift(f.find("account", account_kind="grant"), "used_gpu_us", 1),
    ),
    "a share's balance differs": (
        "balance",
        lambda f: shift(f.find("account", account_kind="share"), "used_gpu_us", 1),
    ),
    "a settle was deleted": ("balance", lambda f: f.remove(f.find("transfer", type="settle"))),
    "a settle stands twice": ("transfer_once", lambda f: f.repeat(f.find("transfer", type="settle"))),
    "a settle stands twice under two ids": ("slice_bounds", lambda f: _twice(f)),
    "a slice was moved by a millisecond": ("slice_row", lambda f: shift(f.find("slice"), "starts_at_ms", 1)),
    "slice and settle begin earlier": ("slice_bounds", lambda f: _overlap(f)),
    "a slice runs over the hour": ("slice_bounds", lambda f: _over_the_hour(f)),
    "a slice was deleted": ("slice_row", lambda f: f.remove(f.find("slice"))),
    "a slice without a settle": ("slice_row", lambda f: f.repeat(f.find("slice"), id="x:1:slice:0")),
    "a slice paid by another": (
        "slice_row",
        lambda f: f.find("slice", payer="grant").update(payer="platform"),
    ),
    "a rate version was changed": (
        "rate_version",
        lambda f: f.find("rate", id="h100@1").update(rate_thousandths=999),
    ),
    "a price was changed everywhere but there": ("rate_version", lambda f: _cheaper(f)),
    "a settle without a rate": (
        "rate_version",
        lambda f: f.find("transfer", type="settle").update(rate=None),
    ),
    "a hold's stored rate differs": ("rate_version", lambda f: shift(f.find("hold"), "rate_thousandths", 1)),
    "a settle at another rate than its hold": ("hold_row", lambda f: _other_rate(f)),
    "a second hold": ("hold_once", lambda f: f.repeat(f.find("transfer", type="hold"), id="second")),
    "no hold at all": ("hold_once", lambda f: f.remove(f.find("transfer", type="hold"))),
    "a release too small": ("hold_once", lambda f: _grow_all(f, "release", -1)),
    "a second release": ("hold_once", lambda f: f.repeat(f.find("transfer", type="release"), id="again")),
    "a charge after the release": ("hold_once", lambda f: _release_first(f)),
    "a hold too small for its charges": ("hold_cover", lambda f: _grow_all(f, "hold", -(10**10))),
    "an extension was deleted": ("hold_cover", lambda f: f.remove(f.find("transfer", type="extend"))),
    "a stored hold differs": ("hold_row", lambda f: shift(f.find("hold"), "settled_gpu_us", 1)),
    "a stored hold without extensions": (
        "hold_row",
        lambda f: f.find("hold", extensions=1).update(extensions=0),
    ),
    "a stored hold on another path": ("hold_row", lambda f: f.find("hold").update(path=["platform"])),
    "a stored hold was deleted": ("hold_row", lambda f: f.remove(f.find("hold"))),
    "a stored hold of another grant": ("hold_row", lambda f: f.find("hold").update(grant_id="g")),
    "the same time given back twice": ("refund_within", lambda f: f.repeat(_fault(f), id="again")),
    "a refund of no charge": ("refund_within", lambda f: _fault(f).update(refund_of="nothing")),
    "a refund beyond its slice": ("refund_within", lambda f: _refund_beyond(f)),
    "a refund to who did not pay": ("refund_within", lambda f: _refund_to_platform(f)),
    "no actor": ("transfer_told", lambda f: f.find("transfer", type="pullback").update(actor="")),
    "an adjustment without evidence": (
        "transfer_told",
        lambda f: f.find("transfer", type="adjust").update(evidence=None),
    ),
    "an account of another kind": (
        "account_kind",
        lambda f: f.find("account", account_kind="share").update(account_kind="tranche"),
    ),
    "an overdraft was taken away": ("account_limit", lambda f: _no_overdraft(f)),
    "a hold past the grant": ("account_limit", lambda f: _grow_all(f, "hold", 10**13)),
    "a grant below zero": ("account_limit", lambda f: _grow_all(f, "pullback", 10**14)),
    "shares larger than their grant": ("limits_fit", lambda f: _raise_limit(f, "share:")),
    "tranches larger than their grant": ("limits_fit", lambda f: _raise_limit(f, "tranche:")),
    "a grant has another owner": ("grant_owner", lambda f: f.find("grant").update(organization_id="gamma")),
    "an overdraft larger than awarded": (
        "grant_owner",
        lambda f: f.find("account", account_kind="grant", overdraft_thousandths=250).update(
            overdraft_thousandths=900
        ),
    ),
    "a hold of no job": ("hold_once", lambda f: f.find("transfer", type="hold").update(job_id=None)),
    "an award left no trace": ("grant_owner", lambda f: f.remove(f.find("audit", action="grant.award"))),
    "an award to somebody else": (
        "grant_owner",
        lambda f: f.find("audit", action="grant.award").update(detail="[]"),
    ),
    "seals run backwards in time": ("seal_chain", lambda f: f.all("seal")[1].update(at_ms=0)),
    "a transaction's transfer is missing": ("feed_order", lambda f: f.remove(_pair(f)[0])),
    "two transfers were swapped": ("feed_order", lambda f: _swap(f, *_pair(f))),
    "a transaction was moved": ("feed_order", lambda f: shift(f.all("audit")[20], "seq", 5)),
}


@pytest.mark.parametrize("case", RESEALED)
def test_a_change_under_new_seals_is_found(case: str, ledger: bytes, tmp_path: Path) -> None:
    rule, forge = RESEALED[case]
    forgery = Forgery(ledger)
    forge(forgery)
    if rule != "feed_order":
        forgery.number()
    if rule not in ("balance", "conservation"):
        forgery.restore_sums()
    forgery.seal()
    forgery.close()
    broken = rules_broken(tmp_path, forgery.content())
    assert rule in broken
    assert not {"seal_hash", "file_hash", "file_form"} & set(broken), "this forger knows how to hash"


def test_a_chain_sealed_anew_is_found_by_a_hash_written_down_earlier(ledger: bytes, tmp_path: Path) -> None:
    forgery = Forgery(ledger)
    heads = [seal["sha256"] for seal in forgery.all("seal")]
    forgery.remove(forgery.find("audit", action="organization.create"))
    forgery.seal()
    forgery.close()
    assert rules_broken(tmp_path, forgery.content()) == [], "nothing else can tell"
    for head in heads:
        assert rules_broken(tmp_path, forgery.content(), head=head) == ["seal_head"]
        assert rules_broken(tmp_path, ledger, head=head) == []


# --- a file that is not whole ---------------------------------------------------------------------------

DAMAGED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "the footer is missing": ("file_hash", lambda c: c[: c.rindex(b"\n", 0, -1) + 1]),
    "cut within a line": ("file_form", lambda c: c[:-1000]),
    "one byte differs": ("file_hash", lambda c: c.replace(b'"reason":"a test"', b'"reason":"a tesT"', 1)),
    "the footer counts otherwise": (
        "file_hash",
        lambda c: c.replace(b'"counts":{"account":', b'"counts":{"account":1'),
    ),
    "a line after the footer": ("file_form", lambda c: c + c[c.rindex(b"\n", 0, -1) + 1 :]),
    "a space too many": ("file_form", lambda c: c.replace(b'"kind":"audit"', b'"kind": "audit"', 1)),
    "a key twice": ("file_form", lambda c: c.replace(b'"kind":"audit"', b'"kind":"audit","kind":"audit"', 1)),
    "a field too many": (
        "file_form",
        lambda c: c.replace(b'"kind":"audit"', b'"kind":"audit","kinder":1', 1),
    ),
    "an amount that is none": ("file_form", lambda c: c.replace(b'"d_held":"0"', b'"d_held":"1e3"', 1)),
    "a number as text": ("file_form", lambda c: c.replace(b'"position":0', b'"position":"0"', 1)),
    "an unknown kind": ("file_form", lambda c: c.replace(b'"kind":"slice"', b'"kind":"slide"', 1)),
    "a kind that is no text": ("file_form", lambda c: c.replace(b'"kind":"slice"', b'"kind":["slice"]', 1)),
    "no JSON": ("file_form", lambda c: c.replace(b'{"action"', b'{action"', 1)),
    "a thousand brackets": ("file_form", lambda c: c.replace(b'"rate":null', b'"rate":' + b"[" * 100_000, 1)),
    "bytes that are no text": ("file_form", lambda c: c.replace(b'"kind":"audit"', b'"kind":"\xff"', 1)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_found(case: str, ledger: bytes, tmp_path: Path) -> None:
    rule, damage = DAMAGED[case]
    content = damage(ledger)
    assert content != ledger
    assert rule in rules_broken(tmp_path, content)


def test_every_rule_about_the_ledger_has_a_case() -> None:
    found = {rule for cases in (UNSEALED, RESEALED, DAMAGED) for rule, _ in cases.values()} | {"seal_head"}
    assert found == {rule for rule in audit_verify.RULES if not rule.startswith("statement_")}


# --- what the forger does -------------------------------------------------------------------------------


def _leg(f: Forgery, kind: str) -> Row:
    found: Row = f.find("transfer", type=kind)["legs"][0]
    return found


def _rate(f: Forgery) -> Row:
    found: Row = f.find("transfer", type="settle")["rate"]
    return found


def _fault(f: Forgery) -> Row:
    return f.find("transfer", refund_kind="fault")


def _earmark(f: Forgery) -> Row:
    return f.find("transfer", lambda row: row["legs"][0]["account_id"].startswith("share:"), type="transfer")


def _on_share(f: Forgery) -> Row:
    return f.find("transfer", lambda row: len(row["legs"]) == 2, type="hold")


def _pair(f: Forgery) -> tuple[Row, Row]:
    second = f.find("transfer", position=1)
    return f.find("transfer", seq=second["seq"], position=0), second


def _swap(f: Forgery, one: Row, other: Row) -> None:
    first, second = deepcopy(one), deepcopy(other)
    one.clear()
    one.update(second)
    other.clear()
    other.update(first)


def _put_behind(f: Forgery, row: Row, seal: Row) -> None:
    f.remove(row)
    f.put_after(seal, row)


def _after_last_seal(f: Forgery) -> None:
    last = f.all("seal")[-1]
    f.put_after(last, deepcopy(f.all("audit")[-1]) | {"seq": last["through_seq"] + 1})


def _twice(f: Forgery) -> None:
    settle = f.find("transfer", type="settle")
    part = f.find("slice", id=settle["id"])
    f.repeat(settle, id="again", slice_id="again")
    f.repeat(part, id="again")


def _stretch(f: Forgery, settle: Row, **changes: int) -> None:
    """Change the time of a settle and its slice, with the arithmetic."""
    part = f.find("slice", id=settle["id"])
    settle.update(changes)
    part.update(changes)
    milliseconds = settle["ends_at_ms"] - settle["starts_at_ms"]
    amount = milliseconds * settle["gpus"] * settle["rate"]["rate_thousandths"]
    settle["amount_gpu_us"] = part["amount_gpu_us"] = str(amount)
    for leg in settle["legs"]:
        leg.update(d_held=str(-amount), d_used=str(amount))


def _overlap(f: Forgery) -> None:
    first = f.find("transfer", type="settle")
    second = f.find(
        "transfer", lambda row: row["starts_at_ms"] == first["ends_at_ms"], job_id=first["job_id"]
    )
    _stretch(f, second, starts_at_ms=second["starts_at_ms"] - 1)


def _over_the_hour(f: Forgery) -> None:
    first = f.find("transfer", type="settle")
    _stretch(f, first, ends_at_ms=first["ends_at_ms"] + 1)


def _cheaper(f: Forgery) -> None:
    for row in f.all("transfer", lambda row: row["rate"] is not None):
        row["rate"]["price_krw"] -= 1


def _other_rate(f: Forgery) -> None:
    other = f.find("rate", id="a100@1")
    settle = f.find("transfer", lambda row: row["rate"]["id"] == "h100@1", type="settle")
    settle["rate"] = {name: other[name] for name in settle["rate"]}


def _release_first(f: Forgery) -> None:
    release = f.find("transfer", type="release")
    settle = f.find("transfer", type="settle", seq=release["seq"])
    f.remove(release)
    place = next(place for place, each in enumerate(f.rows) if each is settle)
    f.rows.insert(place, release)


def _refund_beyond(f: Forgery) -> None:
    refund = f.find("transfer", refund_kind="correction")
    charge = f.find("transfer", id=refund["refund_of"])
    refund.update(starts_at_ms=charge["starts_at_ms"] - 5, ends_at_ms=charge["ends_at_ms"])


def _refund_to_platform(f: Forgery) -> None:
    refund = f.find("transfer", refund_kind="correction")
    refund["legs"] = [leg_of(refund, "grant:") | {"account_id": "platform"}]


def _no_overdraft(f: Forgery) -> None:
    for account in f.all("account", lambda row: row["overdraft_thousandths"] > 0):
        account["overdraft_thousandths"] = 0


def _raise_limit(f: Forgery, kind: str) -> None:
    row = f.find("transfer", lambda row: row["legs"][0]["account_id"].startswith(kind), type="transfer")
    shift(row["legs"][0], "d_granted", 10**13)
    shift(row, "amount_gpu_us", 10**13)


def test_the_award_in_the_trail_names_its_organization(ledger: bytes) -> None:
    detail = json.loads(Forgery(ledger).find("audit", action="grant.award")["detail"])
    assert detail["organization_id"] == "alpha"
