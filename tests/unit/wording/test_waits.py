"""Every reason for which a job waits is told in both languages, with every number that stands beside it."""

from __future__ import annotations

import re
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.clock import instant_ms
from quota.i18n import Language, catalogue
from quota.schemas.idle import IdleState
from quota.schemas.scheduling import EndReason, StopReason, Waiting, WaitReason
from quota.schemas.values import BIGGEST_GPU_US, GPU_US_PER_HOUR
from quota.wording.ends import ENDS, PAYER, PLACE, STOPS, end_text, place_text, stop_text
from quota.wording.idles import IDLES
from quota.wording.sentences import DOMAIN, fields_of
from quota.wording.waits import PARTS, WAITS, Names, waiting_text

EN, KO = Language.ENGLISH, Language.KOREAN
NOW = instant_ms("2026-11-30T03:00:00Z")  # noon in Seoul
LATER = instant_ms("2026-11-30T05:20:00Z")
NAMES = Names(
    organizations={"alpha": "Alpha Lab", "beta": "베타 회사"},
    grants={"grant-1": "AI 바우처"},
    gpu_classes={"h100": "H100"},
    accounts={"grant:1": "grant", "share:1": "share", "tranche:1": "tranche"},
)
HANGUL = re.compile(r"[가-힣]")
TEXTS = {
    "grant": ("grant-1", ""),
    "account": ("", "grant:1", "share:1", "tranche:1", "gone"),
    "what": ("hub", "cluster", "gpu_class"),
    "within": ("node", "rack"),
    "code": ("capacity_taken", "a_new_code"),
    "organization": ("alpha", "beta"),
}
INTS = {
    "_gpu_us": (0, 1, GPU_US_PER_HOUR, BIGGEST_GPU_US),
    "_ms": (0, NOW, NOW + 1, LATER, 1 << 62),
    "_thousandths": (-1000, -1, 0, 1, 31, 1000),
    "": (0, 1, 2, 8, 1000, 1 << 62),
}
TEXT_NUMBERS = frozenset(TEXTS) | {"gpu_class", "job", "ending_job", "cluster", "name"}


def told(code: WaitReason, language: Language = EN, /, **numbers: int | str) -> str:
    return waiting_text(language, Waiting(code=code, numbers=numbers), NAMES, NOW)


def _values(name: str) -> tuple[int | str, ...]:
    if name in TEXT_NUMBERS:
        return TEXTS.get(name, ("h100", "job-1", "x"))
    return next(values for end, values in INTS.items() if name.endswith(end))


def _templates(code: WaitReason) -> list[str]:
    return [say.english for clause in WAITS[code].clauses for say in clause]


ALL_TEMPLATES = {
    *chain.from_iterable(_templates(code) for code in WAITS),
    *(say.english for say in (*ENDS.values(), *STOPS.values(), *PLACE, PAYER)),
    *(say.english for clauses in IDLES.values() for clause in clauses for say in clause),
}


# --- whole ----------------------------------------------------------------------------------------


def test_every_reason_has_its_sentence() -> None:
    assert set(WAITS) == set(WaitReason), "a new reason: say in quota/wording/waits.py why such a job waits"
    assert set(ENDS) == set(EndReason)
    assert set(STOPS) == set(StopReason)
    assert set(IDLES) == set(IdleState)


@pytest.mark.parametrize("code", WaitReason)
def test_every_number_is_told_and_nothing_else(code: WaitReason) -> None:
    wording = WAITS[code]
    named = {field for template in _templates(code) for field in fields_of(template)}
    decided_by = {key for clause in wording.clauses for say in clause for key in say.only}
    for number in wording.numbers:
        fields = {number} | PARTS.get(number, frozenset())
        assert fields & (named | decided_by), f"{code}: no sentence tells {number}"
    made = {part for number in wording.numbers for part in PARTS.get(number, ())}
    assert named | decided_by <= wording.numbers | made, (
        f"{code}: a sentence tells what the reason does not have"
    )


@pytest.mark.parametrize("code", WaitReason)
def test_every_reason_has_a_sentence_without_numbers(code: WaitReason) -> None:
    """An older scheduler, or a reader who may not know them, has none."""
    assert told(code)
    assert HANGUL.search(told(code, KO))


def test_every_sentence_is_translated_and_no_translation_is_stale() -> None:
    assert set(catalogue(KO, DOMAIN)) == ALL_TEMPLATES


def test_both_languages_name_the_same_fields() -> None:
    for english, korean in catalogue(KO, DOMAIN).items():
        assert fields_of(english) == fields_of(korean), english


def test_particles_stand_in_korean_only() -> None:
    for english, korean in catalogue(KO, DOMAIN).items():
        assert ":" not in "".join(re.findall(r"\{[^}]*\}", english))
        assert not re.search(r"\}(은|는|이|가|을|를|과|와|으로|로)[ .,]", korean), korean


@given(st.data(), st.sampled_from(WaitReason), st.sampled_from(Language))
def test_whatever_is_known_is_told_in_one_language(
    data: st.DataObject, code: WaitReason, language: Language
) -> None:
    known = data.draw(st.sets(st.sampled_from(sorted(WAITS[code].numbers)))) if WAITS[code].numbers else set()
    numbers = {name: data.draw(st.sampled_from(_values(name))) for name in sorted(known)}
    text = told(code, language, **numbers)
    assert text
    assert not re.search(r"[{}]|None", text)
    assert ("(는)" in text or "(가)" in text or "(를)" in text) is False, "every name here has a known end"
    if language is EN:
        assert not HANGUL.search(text.replace("AI 바우처", "").replace("베타 회사", ""))
    else:
        assert HANGUL.search(text)
        assert re.search(r"(니다|니까)\)?$", text), text


# --- as people read them --------------------------------------------------------------------------

GRANT, ROOM = {"grant": "grant-1"}, {"room_at_ms": LATER, "ending_job": "job-4711"}
SAID: list[tuple[WaitReason, dict[str, int | str], str, str]] = [
    (
        WaitReason.NO_FREE_GPU,
        {"gpu_class": "h100", "needed": 8, "free": 3, **ROOM},
        "needs 8 H100, 3 free now; job-4711 ends by 14:20 KST and then leaves room for it, unless a job ahead takes"
        " that",
        "H100이 8개 필요하지만 지금 비어 있는 것은 3개입니다. job-4711이 늦어도 14:20에 끝나면 자리가 "
        "나며, 앞선 작업이 먼저 쓸 수 있습니다",
    ),
    (
        WaitReason.NO_FREE_GPU,
        {"gpu_class": "h100", "needed": 8, "free": 0, "room_at_ms": NOW, "ending_job": "job-2"},
        "needs 8 H100, 0 free now; job-2 should have ended by 12:00 KST and leaves room for it when it does",
        "H100이 8개 필요하지만 지금 비어 있는 것은 0개입니다. 12:00까지 끝났어야 하는 job-2가 끝나면 자리가 납니다",
    ),
    (
        WaitReason.NO_NODE_FITS,
        {"gpu_class": "h100", "gpus_per_pod": 8, "pods": 1, "pods_fit": 0},
        "needs 8 H100 on one node; what is free is scattered over several",
        "한 노드에 H100이 8개 필요하지만 빈 GPU가 여러 노드에 흩어져 있습니다",
    ),
    (
        WaitReason.NO_NODE_FITS,
        {"gpu_class": "h100", "gpus_per_pod": 8, "pods": 4, "pods_fit": 3, "room_at_ms": LATER},
        "needs 4 pods of 8 H100, each on one node; what is free is scattered and holds 3 of them; there is room for"
        " it by 14:20 KST, unless a job ahead takes that",
        "한 노드에 H100을 8개씩 쓰는 파드 4개가 필요하지만 빈 GPU가 흩어져 있어 3개만 들어갑니다. 늦어도 14:20에 자리가"
        " 나며, 앞선 작업이 먼저 쓸 수 있습니다",
    ),
    (
        WaitReason.NO_NODE_FITS,
        {
            "gpu_class": "h100",
            "gpus_per_pod": 8,
            "pods": 1,
            "pods_fit": 0,
            "within": "node",
            "other_classes": 1,
        },
        "needs 8 H100 on one node, for all its pods; no node has them free; neither does the other class that it"
        " accepts let it start",
        "모든 파드가 한 노드에 있어야 하므로 H100이 8개 필요하지만 그만큼 빈 노드가 없습니다. "
        "허용한 다른 GPU 클래스에서도 시작할 수 없습니다",
    ),
    (
        WaitReason.NO_NODE_FITS,
        {
            "gpu_class": "h100",
            "gpus_per_pod": 8,
            "pods": 4,
            "pods_fit": 3,
            "within": "rack",
            "other_classes": 2,
        },
        "needs 4 pods of 8 H100 in one rack; no rack holds more than 3 of them now; neither does any of the 2 other"
        " classes that it accepts let it start",
        "한 랙 안에 H100을 8개씩 쓰는 파드 4개가 필요하지만 지금 한 랙에 많아야 3개만 들어갑니다. "
        "허용한 다른 GPU 클래스 2개에서도 시작할 수 없습니다",
    ),
    (
        WaitReason.ORGANIZATION_CAP,
        {"organization": "beta", "cap": 16, "in_use": 12, "needed": 32},
        "needs 32 GPUs; 베타 회사 has 12 of the 16 in use that it may have at once; so large a job never starts unless"
        " this limit is raised by 16",
        "GPU가 32개 필요하지만 베타 회사는 동시에 쓸 수 있는 16개 중 12개를 쓰고 있습니다. "
        "이 한도를 16개 늘리지 않으면 이렇게 큰 작업은 시작되지 않습니다",
    ),
    (
        WaitReason.GRANT_EXHAUSTED,
        {**GRANT, "account": "share:1", "needed_gpu_us": GPU_US_PER_HOUR + 1, "left_gpu_us": GPU_US_PER_HOUR},
        "needs 1.01 GPU hours; the grant of AI 바우처 has 1 left in the organization's share",
        "GPU 시간이 1.01시간 필요하지만 AI 바우처 배정에서 이 기관의 몫에 남은 것은 1시간입니다",
    ),
    (
        WaitReason.GRANT_EXHAUSTED,
        {**GRANT, "account": "", "needed_gpu_us": GPU_US_PER_HOUR, "left_gpu_us": 0},
        "needs 1 GPU hours; no tranche of the grant of AI 바우처 is released",
        "GPU 시간이 1시간 필요하지만 AI 바우처 배정에 열린 트랜치가 없습니다",
    ),
    (
        WaitReason.GRANT_ENDS_FIRST,
        {**GRANT, "ends_at_ms": LATER, "walltime_ms": 8_400_000},
        "the grant of AI 바우처 ends at 14:20 KST; a time limit of 2 h 20 min or less would fit",
        "AI 바우처 배정이 14:20에 끝납니다. 실행 시간을 2시간 20분 이하로 줄이면 들어갑니다",
    ),
    (
        WaitReason.GRANT_ENDS_FIRST,
        {**GRANT, "ends_at_ms": NOW, "walltime_ms": 0},
        "the grant of AI 바우처 ends at 12:00 KST, before the job's time limit",
        "AI 바우처 배정이 작업의 실행 시간보다 앞서 12:00에 끝납니다",
    ),
    (
        WaitReason.GRANT_CAP,
        {**GRANT, "cap": 16, "in_use": 12, "needed": 32},
        "needs 32 GPUs; the grant of AI 바우처 has 12 of the 16 in use that it may have at once; so large a job never"
        " starts unless this limit is raised by 16",
        "GPU가 32개 필요하지만 AI 바우처 배정은 동시에 쓸 수 있는 16개 중 12개를 쓰고 있습니다. "
        "이 한도를 16개 늘리지 않으면 이렇게 큰 작업은 시작되지 않습니다",
    ),
    (
        WaitReason.NO_GRANT,
        {"grant": ""},
        "its organization has no running grant that could pay for it",
        "이 비용을 낼 수 있는 진행 중인 배정이 기관에 없습니다",
    ),
    (
        WaitReason.BEHIND_IN_ORDER,
        {"position": 2, "organization": "alpha", "job": "job-7", "lag_thousandths": 30},
        "job-7 of Alpha Lab went first and took the room, as the 2nd start of that cycle; Alpha Lab is 3 % of its"
        " grant's term behind pace",
        "그 주기의 2번째 시작으로 Alpha Lab의 job-7이 먼저 자리를 받았습니다. Alpha Lab은 "
        "배정 기간의 3%만큼 배정 속도에 뒤처져 있습니다",
    ),
    (
        WaitReason.BEHIND_IN_ORDER,
        {"position": 1, "organization": "beta", "job": "job-7", "lag_thousandths": -4},
        "job-7 of 베타 회사 went first and took the room, as the 1st start of that cycle; 베타 회사 is 0.4 % of its"
        " grant's term ahead of pace",
        "그 주기의 1번째 시작으로 베타 회사의 job-7이 먼저 자리를 받았습니다. 베타 회사는 "
        "배정 기간의 0.4%만큼 배정 속도를 앞서 있습니다",
    ),
    (
        WaitReason.BEHIND_IN_ORDER,
        {"gpu_class": "h100", "waiting": 1},
        "1 waiting jobs for H100 may go first",
        "H100을 기다리는 작업 1개가 먼저일 수 있습니다",
    ),
    (
        WaitReason.START_REFUSED,
        {"code": "capacity_taken", "until_ms": LATER, "times": 2},
        "its start was refused for the 2nd time (The node has fewer free GPUs of this class than the placement takes);"
        " it is tried again at 14:20 KST",
        "2번째로 시작이 거부되었습니다(이 노드에는 배치에 필요한 만큼의 빈 GPU가 없습니다). 14:20에 다시 시도합니다",
    ),
    (
        WaitReason.NODES_UNAVAILABLE,
        {"gpu_class": "v100", "gpus": 0},
        "no node offers v100",
        "v100을 제공하는 노드가 없습니다",
    ),
    (
        WaitReason.PLACEMENT_PAUSED,
        {"what": "gpu_class", "name": "h100"},
        "the operators let no job on H100 start now",
        "운영자가 H100을 쓰는 작업의 배치를 멈추었습니다",
    ),
    (
        WaitReason.PLACEMENT_PAUSED,
        {"what": "hub", "name": ""},
        "the operators let nothing start anywhere now",
        "운영자가 허브 전체의 배치를 멈추었습니다",
    ),
    (
        WaitReason.RESERVED,
        {"gpu_class": "h100", "needed": 64, "free": 16, "starts_at_ms": LATER + 86_400_000},
        "needs 64 H100, 16 free now; room is kept for it from 14:20 KST on 1 Dec, or sooner if others end sooner",
        "H100이 64개 필요하지만 지금 비어 있는 것은 16개입니다. 12월 1일 14:20부터 이 작업의 자리를 "
        "잡아 두었으며 다른 작업이 일찍 끝나면 더 빨라집니다",
    ),
    (
        WaitReason.ORGANIZATION_FROZEN,
        {"organization": "beta"},
        "베타 회사 is frozen: the operators let it start nothing",
        "베타 회사는 운영자가 정지하여 아무것도 시작할 수 없습니다",
    ),
]


@pytest.mark.parametrize(("code", "numbers", "english", "korean"), SAID)
def test_a_reason_reads_well(
    code: WaitReason, numbers: dict[str, int | str], english: str, korean: str
) -> None:
    assert told(code, EN, **numbers) == english
    assert told(code, KO, **numbers) == korean


def test_a_name_that_is_not_known_is_told_as_its_id() -> None:
    assert "job-7 of gone" in told(WaitReason.BEHIND_IN_ORDER, position=1, organization="gone", job="job-7")


@pytest.mark.parametrize("reason", EndReason)
def test_every_end_is_told_in_both_languages(reason: EndReason) -> None:
    assert not HANGUL.search(end_text(EN, reason))
    assert HANGUL.search(end_text(KO, reason))


@pytest.mark.parametrize("reason", StopReason)
def test_every_stop_is_told_with_its_moment(reason: StopReason) -> None:
    assert "14:20 KST" in stop_text(EN, reason, LATER, NOW)
    assert "14:20" in stop_text(KO, reason, LATER, NOW)


def test_places() -> None:
    assert place_text(EN, 3, 41, 2, 5) == "3rd of 41 in the hub, 2nd of 5 of its organization"
    assert place_text(KO, 3, 41, 2, 5) == "허브 전체 41개 중 3번째, 소속 기관 5개 중 2번째"
    assert place_text(EN, 3, None, None, None) == "3rd in the hub"


def test_booked_room_is_told_by_when_and_how_much_and_not_whose_it_is() -> None:
    room = {"gpu_class": "h100", "gpus": 8}
    assert told(WaitReason.BOOKED, **room, from_ms=LATER) == (
        "the room that would do is booked from 14:20 KST on (8 H100); with a shorter time limit it may fit before"
    )
    assert told(WaitReason.BOOKED, KO, **room, from_ms=LATER).startswith("들어갈 자리가 ")
    assert told(WaitReason.BOOKED, **room, from_ms=NOW) == (
        "the room that would do is booked since 12:00 KST (8 H100)"
    )
    assert "12:00" in told(WaitReason.BOOKED, KO, **room, from_ms=NOW)
