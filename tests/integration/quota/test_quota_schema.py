"""The migrated database is the metadata, refuses a newer schema, and seeds what every hub needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, inspect

from quota import schema_version, timekeeping
from quota.clock import Clock
from quota.db import Database, database_now_ms
from quota.schema import metadata
from quota.schema_version import NewerSchema
from quota.timekeeping import ClockMismatch
from tests.builders import START_MS, HandClock, a_hub


def _differences(database: Database, expected: MetaData) -> list[object]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, expected))


def test_the_migrated_schema_is_the_metadata(database_url: str) -> None:
    database = Database(database_url, Clock())
    assert _differences(database, metadata) == []
    with database.engine.connect() as connection:
        inspector = inspect(connection)
        for table in metadata.sorted_tables:
            named = {check["name"] for check in inspector.get_check_constraints(table.name)}
            wanted = {
                str(constraint.name)
                for constraint in table.constraints
                if constraint.__visit_name__ == "check_constraint"
            }
            assert wanted <= {str(name) for name in named}, table.name
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
    database.close()


def test_the_comparison_sees_a_planted_difference(database_url: str) -> None:
    other = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        table.to_metadata(other)
    other.tables["jobs"].append_column(Column("forgotten", Integer))
    Table("missing", other, Column("id", Integer, primary_key=True))
    database = Database(database_url, Clock())
    assert len(_differences(database, other)) == 2
    database.close()


def test_migrating_again_changes_nothing(database_url: str) -> None:
    hub = a_hub(database_url)
    before = hub.contents()
    schema_version.upgrade(hub.database)
    assert hub.contents() == before
    assert schema_version.is_current(hub.database)
    hub.close()


def test_a_newer_schema_is_refused_in_one_line(database_url: str) -> None:
    database = Database(database_url, Clock())
    with database.engine.execution_options(hub_writes=True).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert not schema_version.is_current(database)
    with pytest.raises(NewerSchema, match="9999") as caught:
        schema_version.upgrade(database)
    assert "\n" not in caught.value.detail
    database.close()


def test_an_empty_database_is_not_current(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new.db'}", Clock())
    assert not schema_version.is_current(database)
    schema_version.upgrade(database)
    assert schema_version.is_current(database)
    database.close()


def test_the_databases_own_clock_runs(database_url: str) -> None:
    database = Database(database_url, HandClock(START_MS))
    with database.read() as connection:
        first = database_now_ms(connection)
        assert abs(first - Clock().now_ms()) < 3_600_000, "wall time, whatever the hub's clock says"
        assert database_now_ms(connection) >= first
    database.close()


# --- the hub's clock ---------------------------------------------------------------------------------


def test_a_first_start_keeps_its_clock(database_url: str) -> None:
    database = Database(database_url, Clock())
    assert database.write(lambda tx: timekeeping.anchor_clock(tx, 1)) == Clock(0, 0, 1)
    assert database.write(lambda tx: timekeeping.anchor_clock(tx, 1)) == Clock(0, 0, 1)
    with database.read() as connection:
        assert timekeeping.read_clock(connection) == Clock(0, 0, 1)
    database.close()


def test_another_speed_on_the_same_database_is_refused(database_url: str) -> None:
    database = Database(database_url, Clock())
    database.write(lambda tx: timekeeping.anchor_clock(tx, 60))
    with pytest.raises(ClockMismatch) as caught:
        database.write(lambda tx: timekeeping.anchor_clock(tx, 1))
    assert caught.value.numbers == {"stored": 60, "asked": 1}
    database.close()


def test_a_faster_clock_goes_on_from_the_latest_time_it_ever_wrote(database_url: str) -> None:
    hub = a_hub(database_url)
    hub.database.write(lambda tx: timekeeping.anchor_clock(tx, 60, START_MS))
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    hub.clock.advance(10_000_000)
    hub.finish(job)
    clock = hub.database.write(lambda tx: timekeeping.anchor_clock(tx, 60))
    assert clock.business_at_ms == START_MS + 10_000_000
    later = hub.database.write(lambda tx: timekeeping.anchor_clock(tx, 60, None, START_MS + 20_000_000))
    assert later.business_at_ms == START_MS + 20_000_000
    hub.close()
