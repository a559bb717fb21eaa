"""The journal on disk: torn lines, damage, two processes."""

from __future__ import annotations

import json
import os

import pytest
from simulator_builders import a_model, an_object, create

from scheduler.simulator.journal import FILE_NAME, Journal, JournalTrouble


def some_events():
    model = a_model()
    create(model, an_object(1_100_000, load="burst:60:0.5"))
    return model.drain()


def written(directory, events):
    journal = Journal(directory)
    journal.read()
    journal.append(events)
    journal.close()
    return directory / FILE_NAME


def reopened(directory):
    journal = Journal(directory)
    try:
        return journal.read()
    finally:
        journal.close()


def test_events_come_back_as_they_were_written(tmp_path):
    events = some_events()
    path = written(tmp_path / "new" / "deep", events)
    assert reopened(path.parent) == events


def test_lines_carry_their_number_and_their_kind(tmp_path):
    path = written(tmp_path, some_events())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["event"] for line in lines[-2:]] == ["object_created", "pod_started"]
    assert lines[-2]["annotations"]["simulate.gpuhub/load"] == "burst:60:0.5"


def test_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path):
    events = some_events()
    path = written(tmp_path, events)
    whole = path.read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(start_of_last, len(whole)):
        path.write_bytes(whole[:length])
        assert reopened(tmp_path) == events[:-1]
        assert path.stat().st_size == start_of_last


def test_writing_goes_on_after_a_torn_line(tmp_path):
    events = some_events()
    path = written(tmp_path, events)
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal(tmp_path)
    journal.read()
    journal.append(events[-1:])
    journal.close()
    assert reopened(tmp_path) == events


def test_events_are_synced_once_after_they_are_all_written(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.read()
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    journal.append(some_events())
    journal.append([])
    assert sizes == [journal.path.stat().st_size]
    journal.close()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [lines[0], b"{}", *lines[2:]], "line 2 cannot be read"),
        (lambda lines: [lines[0], *lines[2:]], "line 2 calls itself line 3"),
        (lambda lines: [lines[0].replace(b"node_added", b"node_eaten"), *lines[1:]], "line 1 cannot be read"),
    ],
)
def test_damage_in_the_middle_is_reported_and_not_repaired(tmp_path, damage, complaint):
    path = written(tmp_path, some_events())
    damaged = b"\n".join(damage(path.read_bytes().split(b"\n")))
    path.write_bytes(damaged)
    with pytest.raises(JournalTrouble, match=complaint):
        reopened(tmp_path)
    assert path.read_bytes() == damaged


def test_second_owner_of_a_directory_is_refused(tmp_path):
    first = Journal(tmp_path)
    with pytest.raises(JournalTrouble, match="in use by another"):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()
