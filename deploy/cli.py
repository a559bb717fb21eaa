"""The `gpuhub` command: firms' and operators' commands; the programs are loaded only when called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import cast

import typer

from deploy import lifeline
from deploy.commands import (
    account,
    audit,
    bookings,
    caps,
    fleet,
    grants,
    job_changes,
    jobs,
    limits,
    logs,
    moves,
    registry,
    sharing,
    statements,
    switches,
    trail,
    upkeep,
)
from deploy.session import ToldGroup
from deploy.show import AUDITORS, OPERATORS

PROGRAMS = {
    "up": ("deploy.up", "Start the whole hub on this machine, or live through a trace."),
    "quota-start": ("deploy.quota_start", ""),
    "quota": ("quota.cli", "The quota service: serve, init, token."),
    "scheduler": ("deploy.snapshots", "The scheduler; a saved state of it, explained."),
    "agent": ("agents.cli", "A node's agent."),
    "simulate-devices": ("scheduler.simulator.devices_cli", ""),
    "simulate": ("scheduler.simulator.cli", "A simulated GPU cluster."),
    "replay": ("deploy.replay", "Play a trace, or a saved state, through the scheduler in virtual time."),
    "whatif": ("deploy.whatif", "What would become of queue and grants under other numbers."),
    "controlplane": ("deploy.controlplane.cli", "A real Kubernetes control plane with simulated nodes."),
    "prometheus": ("deploy.prometheus.cli", "A Prometheus that knows the hub's rules and alerts."),
}
"""Each pulls in a web server, a database or numpy, which would make `gpuhub jobs` slow to start."""

EXIT_CODES = (
    "Exit codes: 0 done · 1 the service refused · 2 wrong usage or configuration · 3 service unavailable"
)


def firm_app() -> typer.Typer:
    """All commands; those of PROGRAMS only as entries of the help."""
    app = typer.Typer(
        name="gpuhub",
        cls=ToldGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="GPU hours granted, held, placed, measured and settled.",
        epilog=EXIT_CODES,
    )
    account.register(app)
    statements.register(app)
    jobs.register(app)
    logs.register(app)
    switches.register(app)
    sharing.register(app)
    bookings.register(app)
    caps.register(app)
    job_changes.register(app)
    app.add_typer(grants.grant_app, name="grant", rich_help_panel=OPERATORS)
    app.add_typer(grants.program_app, name="program", rich_help_panel=OPERATORS)
    limits.register(app)
    moves.register(app)
    upkeep.register(app)
    app.add_typer(registry.organization_app, name="organization", rich_help_panel=OPERATORS)
    app.add_typer(registry.token_app, name="token", rich_help_panel=OPERATORS)
    app.add_typer(fleet.node_app, name="node", rich_help_panel=OPERATORS)
    app.add_typer(fleet.class_app, name="class", rich_help_panel=OPERATORS)
    app.add_typer(audit.audit_app, name="audit", rich_help_panel=AUDITORS)
    trail.register(app)
    for name, (_, text) in PROGRAMS.items():
        app.command(name, help=text, hidden=not text, rich_help_panel="Programs")(_never_called)
    return app


def main() -> None:
    """Run the command line."""
    lifeline.hold()
    try:
        _dispatch(sys.argv[1] if len(sys.argv) > 1 else "")
    except KeyboardInterrupt:
        sys.exit(130)


def _dispatch(name: str) -> None:
    if name in PROGRAMS:
        app = cast("typer.Typer", import_module(PROGRAMS[name][0]).app)
        app(args=sys.argv[2:], prog_name=f"gpuhub {name}")
    else:
        firm_app()()


def _never_called() -> None:
    raise AssertionError("main() hands the programs over before the firm app sees them")


if __name__ == "__main__":
    main()
