"""The contract of the hub's metrics, as a page: `python -m deploy.prometheus.contract docs/metrics.md` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents import families as agent_families
from quota import families as quota_families
from quota.exposition import Family
from scheduler import families as scheduler_families


@dataclass(frozen=True, slots=True)
class Contract:
    """What one program serves."""

    job: str
    """Its scrape job in the configuration."""
    title: str
    note: str
    families: tuple[Family, ...]


CONTRACTS = (
    Contract(
        "quota",
        "Quota service",
        "`hub_quota_…`, made from the database's state at each scrape: every replica serves the same, so take the\n"
        "greatest (`max without (instance)`). Times of grants, jobs and clusters are business time, whose now is\n"
        "`hub_quota_business_timestamp_seconds`. `hub_quota_attempt_gpus` says whose job is whose, for what agents\n"
        "tell, and ends with the attempt. From another machine `/metrics` wants a token of role auditor or operator.",
        quota_families.FAMILIES,
    ),
    Contract(
        "scheduler",
        "Scheduler",
        "`hub_sched_…`. A standby shows no queue and no shares; counters and histograms are of this process alone.",
        scheduler_families.FAMILIES,
    ),
    Contract(
        "agent",
        "Agents",
        "`hub_gpu_…` and `hub_agent_…`. Seconds are business seconds, timestamps wall time. What is not known has no\n"
        "series. `job_id` and `attempt` are labels of `hub_gpu_workload_…` only, whose series end with the job. More\n"
        "in [agents.md](agents.md).",
        agent_families.FAMILIES,
    ),
)

_HEAD = """\
# Metrics

Every family of series that the hub's programs serve at `/metrics`. Written by `make docs` from their declarations
(`families.py` of each program); tests compare this page, and what the running programs serve, with these.

Names follow Prometheus' conventions: base units, `_total` for counters, `_info` where only the labels tell something.
Labels are bounded: `organization`, `program`, `grant_id`, `gpu_class`, `cluster`, `node`, `gpu_uuid`, states and
reasons; no histogram has an organization. A family may be declared in one place only, and is changed like an API: its
name, type and labels are what dashboards, rules and alerts ([runbooks.md](runbooks.md)) are written against.
"""


def by_series() -> dict[str, Family]:
    """The family of every series name, buckets, sums and counts of histograms included."""
    return {name: family for one in CONTRACTS for family in one.families for name in family.series}


def page() -> str:
    """The whole page."""
    return "\n".join((_HEAD, *(line for one in CONTRACTS for line in _section(one))))


def _section(contract: Contract) -> Iterator[str]:
    yield f"## {contract.title}"
    yield ""
    yield contract.note
    yield ""
    yield "| series | type | labels | unit | meaning |"
    yield "|---|---|---|---|---|"
    for family in contract.families:
        labels = [f"`{label}`" for label in family.labels] + [f"(`{label}`)" for label in family.optional]
        cells = (f"`{family.name}`", family.kind.value, ", ".join(labels), family.unit, family.meaning)
        yield "| " + " | ".join(cells) + " |"
    yield ""


def main() -> None:
    """Write the page into the file that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m deploy.prometheus.contract FILE")
    Path(sys.argv[1]).write_text(page())


if __name__ == "__main__":
    main()
