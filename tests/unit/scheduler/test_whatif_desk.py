"""What-if questions at the scheduler's door: who may ask, how many, for how long; and no process stays behind."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scheduler.door import Door, Readiness, Windows
from scheduler.whatif.desk import TookTooLong, TooManyQuestions, Unanswered, WhatIfDesk
from tests.unit.scheduler.saved_states import a_document, a_running, a_small_hub, a_waiting

PATIENCE_S = 30
SLOW = (
    "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
)
ENVIRONMENT = "import json, os, sys; sys.stdin.read(); print(json.dumps(dict(os.environ)))"


def _question(*changes: dict[str, Any], **state: Any) -> bytes:
    hub = a_small_hub(*a_running("job-run", "n0", 8), a_waiting("job-1", gpus_per_pod=8))
    request = {"changes": changes or [{"kind": "hub", "paused": True}], "horizon_h": 10}
    return json.dumps({"request": request, "state": a_document(*hub.items) | state}).encode()


def _desk(*command: str) -> WhatIfDesk:
    return WhatIfDesk(lambda authorization: authorization == "Bearer s", child=command)


def _slow(tmp_path: Path) -> tuple[WhatIfDesk, Callable[[], int | None]]:
    """A desk whose children never answer, and the last one's pid."""
    path = tmp_path / "pid"

    def pid() -> int | None:
        return int(path.read_text()) if path.exists() and path.read_text() else None

    return _desk(sys.executable, "-c", SLOW, str(path)), pid


def _until(holds: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


def _is_over(pid: int | None) -> bool:
    assert pid is not None
    return not Path(f"/proc/{pid}").exists()


@contextmanager
def a_door(desk: WhatIfDesk) -> Iterator[str]:
    windows = Windows(bytes, lambda: Readiness(True, ""), list, what_if=desk)
    with Door("127.0.0.1", 0, windows) as door:
        yield f"http://127.0.0.1:{door.port}/-/what-if"


def _post(url: str, question: bytes, secret: str = "s", **query: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    params = {"limit_s": "30"} | query
    return httpx2.post(url, params=params, content=question, headers=headers, timeout=PATIENCE_S)


def test_a_process_of_its_own_plays_the_question() -> None:
    with a_door(WhatIfDesk(lambda authorization: authorization == "Bearer s")) as url:
        answer = _post(url, _question())
    assert answer.status_code == 200, answer.content
    reply = answer.json()
    assert reply["changed_to"] == ["hub: paused False -> True"]
    assert reply["difference"]["all_jobs"]["started"] == -1


@pytest.mark.parametrize(
    ("question", "field", "told"),
    [
        (_question({"kind": "cluster", "id": "x", "paused": True}), "changes.0.id", "no cluster x"),
        (_question({"kind": "luck"}), "changes.0", "'grant', 'fair_share'"),
        (_question(sha256="0"), "", "was changed after it was saved"),
    ],
)
def test_what_cannot_be_played_says_why(question: bytes, field: str, told: str) -> None:
    answer = json.loads(WhatIfDesk(lambda _: True).answer(question, 30, lambda: False))
    assert answer["error"]["field"] == field
    assert told in answer["error"]["detail"]


def test_strangers_and_wrong_requests_start_nothing() -> None:
    with a_door(_desk("false")) as url:
        assert _post(url, b"{}", "other").status_code == 401
        assert _post(url, b"{}", limit_s="0").status_code == 422
        assert _post(url, b"{}", limit_s="x").status_code == 422
        assert _post(url.replace("what-if", "what"), b"{}").status_code == 404
        address = httpx2.URL(url)
        connection = http.client.HTTPConnection(address.host, address.port or 0, timeout=PATIENCE_S)
        headers = {"Authorization": "Bearer s", "Content-Length": str(10**12)}
        connection.request("POST", "/-/what-if?limit_s=9", headers=headers)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_child_that_dies_is_no_answer() -> None:
    with pytest.raises(Unanswered, match="ended with 1"):
        _desk("false").answer(b"{}", 30, lambda: False)
    with a_door(_desk("false")) as url:
        assert _post(url, b"{}").status_code == 500


def test_one_at_a_time_and_the_next_when_the_first_has_ended(tmp_path: Path) -> None:
    desk, pid = _slow(tmp_path)
    leaves = threading.Event()
    first = _Asking(desk, 30, leaves.is_set)
    _until(pid, "the first is being played")
    with pytest.raises(TooManyQuestions):
        desk.answer(b"{}", 30, lambda: False)
    leaves.set()
    assert isinstance(first.ended(), Unanswered)
    assert _is_over(pid())
    with pytest.raises(TookTooLong):
        desk.answer(b"{}", 0.1, lambda: False)
    _until(lambda: _is_over(pid()), "the child is gone")


def test_who_hangs_up_ends_the_question(tmp_path: Path) -> None:
    desk, pid = _slow(tmp_path)
    with a_door(desk) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                url, params={"limit_s": "60"}, content=b"{}", headers={"Authorization": "Bearer s"}, timeout=3
            )
        _until(lambda: _is_over(pid()), "the child is gone")
        assert _post(url, b"{}", limit_s="1").status_code == 504


def test_a_door_that_closes_ends_the_question(tmp_path: Path) -> None:
    desk, pid = _slow(tmp_path)
    asking = _Asking(desk, 60, lambda: False)
    _until(pid, "it is being played")
    desk.close()
    assert isinstance(asking.ended(), Unanswered)
    assert _is_over(pid())


def test_the_child_is_not_told_the_leaders_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", "secret")
    environment = json.loads(_desk(sys.executable, "-c", ENVIRONMENT).answer(b"{}", 30, lambda: False))
    assert "GPUHUB_TOKEN" not in environment
    assert environment["PATH"] == os.environ["PATH"]


class _Asking:
    """One question in a thread."""

    def __init__(self, desk: WhatIfDesk, limit_s: float, gone: Callable[[], bool]) -> None:
        self._came: Exception | bytes | None = None
        self._thread = threading.Thread(target=self._ask, args=(desk, limit_s, gone))
        self._thread.start()

    def _ask(self, desk: WhatIfDesk, limit_s: float, gone: Callable[[], bool]) -> None:
        try:
            self._came = desk.answer(b"{}", limit_s, gone)
        except (TookTooLong, TooManyQuestions, Unanswered) as error:
            self._came = error

    def ended(self) -> Exception | bytes | None:
        self._thread.join(PATIENCE_S)
        return self._came
