"""`python -m scheduler.simulator`: the simulated cluster without the rest of the hub."""

from scheduler.simulator.cli import app

if __name__ == "__main__":
    app(prog_name="gpuhub simulate")
