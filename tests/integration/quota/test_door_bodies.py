"""Bodies that lie about their length, come late or never: the guard answers as if they had come."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Request

from quota import door
from quota.client import QuotaClient
from tests import databases
from tests.builders import Api, an_api
from tests.integration.quota.door_world import JSON, LIMIT, Operation, operations

BUSY = ("send_decisions", "send_reports", "put_ranking", "deliver_evidence", "report_gpus")
ORDINARY = ("submit_job", "award_grant")
NUMBERLESS = "0" * 5000
"""A length that is a number and that Python refuses to read."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("bodies")
    limits = {"lockout_pair_failures": 10_000, "lockout_address_failures": 10_000}
    with an_api(databases.new_sqlite(folder), body_limit_bytes=LIMIT, **limits) as made:
        yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the guard asked who calls; it waits for no body before that."""
    event, admit = threading.Event(), door._Guard.admit

    def told(guard: door._Guard, request: Request) -> None:
        admit(guard, request)
        event.set()

    monkeypatch.setattr(door._Guard, "admit", told)
    monkeypatch.setattr(door, "GUARD_WAITS_S", 0.0)
    return event


def client_of(api: Api, one: Operation) -> QuotaClient:
    if "agent" in one.roles:
        return api.agent
    return api.scheduler if "scheduler" in one.roles else api.operator


def head(one: Operation, secret: str, length: object, *more: str) -> bytes:
    lines = (
        f"{one.method} {one.url()} HTTP/1.1",
        "Host: hub",
        f"Authorization: Bearer {secret}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
        *more,
    )
    return "\r\n".join([*lines, "", ""]).encode()


def secret_of(client: QuotaClient) -> str:
    return client._http.headers["Authorization"].removeprefix("Bearer ")


def connect(api: Api) -> socket.socket:
    host, _, port = api.base_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answered(line: socket.socket) -> tuple[int, str]:
    """Status and code of the next answer; fails when none comes."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = line.recv(65536)
        assert part, f"the service hung up after {text!r}"
        text += part
    status = int(text.split(b" ", 2)[1])
    content = text.partition(b"\r\n\r\n")[2]
    while True:
        try:
            return status, str(json.loads(content).get("code", ""))
        except json.JSONDecodeError:
            part = line.recv(65536)
            assert part, f"the service hung up after {content!r}"
            content += part


@pytest.mark.parametrize("operation", [*BUSY, *ORDINARY])
@pytest.mark.parametrize("length", ["5", str(LIMIT * 1000), NUMBERLESS, "9" * 18])
def test_a_stranger_is_told_so_without_sending_a_body(api: Api, operation: str, length: str) -> None:
    with connect(api) as line:
        line.sendall(head(operations(api)[operation], "ghub_nobody", length))
        assert answered(line) == (401, "unauthenticated")


@pytest.mark.parametrize("operation", [*BUSY, *ORDINARY])
def test_a_length_of_thousands_of_digits_breaks_nothing(api: Api, operation: str) -> None:
    one = operations(api)[operation]
    with connect(api) as line:
        line.sendall(head(one, secret_of(client_of(api, one)), NUMBERLESS))
        status, _ = answered(line)
    assert status == 422


@pytest.mark.parametrize("operation", BUSY)
def test_a_good_body_that_comes_late_is_answered_like_any_other(
    api: Api, operation: str, asked: threading.Event
) -> None:
    one = operations(api)[operation]
    client, body = client_of(api, one), json.dumps(one.body()).encode()
    expected = api.call(client, one.method, one.url(), content=body, headers=JSON)
    asked.clear()
    with connect(api) as line:
        line.sendall(head(one, secret_of(client), len(body)) + body[:10])
        assert asked.wait(20), "the guard did not wait for the rest"
        line.sendall(body[10:])
        assert answered(line) == (expected.status_code, expected.json().get("code", ""))


def test_who_hangs_up_in_the_middle_of_a_body_harms_nobody(api: Api, asked: threading.Event) -> None:
    one = operations(api)["send_reports"]
    for _ in range(5):
        asked.clear()
        with connect(api) as line:
            line.sendall(head(one, secret_of(api.scheduler), 50) + b"{")
            assert asked.wait(20)
    body = json.dumps(one.body()).encode()
    answer = api.call(api.scheduler, one.method, one.url(), content=body, headers=JSON)
    assert answer.status_code < 500
