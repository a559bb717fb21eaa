"""Which files begin: those that take longest, so that no worker is left alone with one of them at the end.

What mostly waits (for processes to die, come back and settle, for a control plane) stands beside what mostly computes:
of the workers, one more than cores, then seldom all want to compute. Each takes half a minute or more; the order
within the list needs no care.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent

LONGEST = (
    "e2e/test_kubernetes_harm.py",
    "integration/replay/test_packing.py",
    "e2e/test_crash_random.py",
    "property/ledger/test_ledger_year.py",
    "e2e/test_up_kubernetes.py",
    "e2e/test_kubernetes_two.py",
    "integration/replay/test_against_reference.py",
    "e2e/test_crash_services.py",
    "contract/cluster/test_kubernetes_faults.py",
    "integration/quota/test_openapi_fuzz.py",
    "e2e/test_crash_replies.py",
    "contract/cluster/test_kubernetes_life.py",
    "unit/quota/idle/test_idle_profiles.py",
    "e2e/test_fencing_leaders.py",
    "contract/cluster/test_cluster_contract.py",
    "integration/agents/test_nvml_soak.py",
    "e2e/test_dashboards_live.py",
    "integration/scheduler/test_scheduler_processes.py",
    "integration/quota/test_commit_failures.py",
    "e2e/test_kubernetes_preemption.py",
    "e2e/test_crash_scheduler.py",
    "property/ledger/test_ledger_year_books.py",
    "integration/agents/test_nvml_agent.py",
    "integration/quota/test_idle.py",
    "integration/agents/test_agent_crashes.py",
    "integration/kubernetes/test_hub_accounts.py",
    "integration/kubernetes/test_firm_ways.py",
    "property/ledger/test_ledger_machine.py",
    "integration/controlplane/test_controlplane_life.py",
    "integration/prometheus/test_alert_cases.py",
    "property/ledger/test_ledger_moves.py",
    "e2e/test_kubernetes_hub.py",
    "integration/quota/test_refusals_change_nothing.py",
    "integration/agents/test_nvml_pods.py",
    "integration/quota/test_audit_verify_fuzz.py",
    "integration/agents/test_nvml_crashes.py",
    "integration/quota/test_contract_reports.py",
    "e2e/test_up_restart.py",
    "integration/agents/test_nvml_errors.py",
    "e2e/test_cli_commands.py",
)
_PLACES = {TESTS / name: place for place, name in enumerate(LONGEST)}


def place(file: Path) -> int:
    """Where a file stands; all that are not named stand at the end, in whatever order they came."""
    return _PLACES.get(file, len(LONGEST))
