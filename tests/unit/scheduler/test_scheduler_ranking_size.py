"""The largest ranking that the contract allows is a body that the quota service takes."""

from __future__ import annotations

from quota.ids import new_id
from quota.schemas.scheduling import RankingDocument, Waiting, WaitReason
from quota.settings import Settings
from scheduler.ranking import LONGEST_ORDER

SAMPLE = 100


def test_a_complete_ranking_of_all_that_may_be_ranked_is_taken() -> None:
    """Told to all of them is the longest reason: scattered room, and by when it is back."""
    ids = [new_id("job") for _ in range(SAMPLE)]
    numbers: dict[str, int | str] = {
        "gpu_class": "h100-1g.10gb",
        "gpus_per_pod": 16,
        "pods": 1000,
        "pods_fit": 1000,
        "room_at_ms": 1_800_000_000_000,
        "ending_job": new_id("job"),
    }
    reasons = {job_id: Waiting(code=WaitReason.NO_NODE_FITS, numbers=numbers) for job_id in ids}
    document = RankingDocument(epoch=1, cycle=1, at=0, order=tuple(ids), reasons=reasons)
    per_job_bytes = len(document.model_dump_json()) / SAMPLE
    assert per_job_bytes * LONGEST_ORDER < Settings().body_limit_bytes
