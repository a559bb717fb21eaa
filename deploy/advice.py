"""What to do about a refusal: one line per code, with the command that helps."""

from __future__ import annotations

from collections.abc import Mapping

ADVICE = {
    "unauthenticated": "the token is unknown, revoked or expired; run `gpuhub login` with a valid one",
    "forbidden": "see who you are with `gpuhub whoami`; an operator makes tokens: `gpuhub token create`",
    "already_exists": "choose another id, or change what is there",
    "insufficient_balance": (
        "see what is free with `gpuhub balance` and `gpuhub limits GRANT`; ask for less, or free some first"
    ),
    "unknown_gpu_class": "see which there are: `gpuhub class list`",
    "no_grant": "see the grants with `gpuhub balance`; the operator awards them",
    "grant_not_active": "see when grants begin and end with `gpuhub balance`",
    "grant_cap": "wait until some GPUs are free again, or ask the operator for a higher cap",
    "organization_cap": "wait until some GPUs are free again, or ask the operator for a higher cap",
    "job_too_large": "see what a job may take: `gpuhub caps show --organization ORGANIZATION`",
    "walltime_too_long": "see how long a job may run: `gpuhub caps show --organization ORGANIZATION`",
    "queue_full": "wait until some have started, or cancel some; see how many may wait: "
    "`gpuhub caps show --organization ORGANIZATION`",
    "wrong_state": "see where it is now: `gpuhub job JOB`",
    "logs_not_started": "see why it waits: `gpuhub job JOB`",
    "logs_gone": "logs go with their pods: read them while the job runs, or within a day of its own end",
    "tranche_order": "release the earlier tranche first; see them with `gpuhub limits GRANT`",
    "precondition_failed": "somebody changed it since you read it; read it again and decide anew",
    "idempotency_key_reused": "one --key stands for one request; take a new one for another request",
    "secret_already_shown": "revoke the token it names with `gpuhub token revoke`, and make another",
    "token_ended": "make a new one with `gpuhub token create`",
    "already_rotated": "use the successor, or revoke it with `gpuhub token revoke` and rotate again",
    "refund_cap_reached": (
        "that is the limit of the grant's policy; `--kind correction` is for time that never ran"
    ),
    "nothing_to_refund": "see what was charged, and when: `gpuhub statement GRANT`",
    "statement_changed": "tell an operator: the ledger answers otherwise than when this was issued",
}


def advice_line(code: str, numbers: Mapping[str, int | str]) -> str:
    """What to do now, or nothing where the refusal itself says it."""
    if "retry_after_s" in numbers:
        return f"try again in {numbers['retry_after_s']} s"
    return ADVICE.get(code, "")
