"""A real Prometheus for tests: started in a folder with given targets and rules, asked by PromQL, gone afterwards.

Whoever starts it may be killed at any moment: Prometheus ends with its starter.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from deploy.prometheus.programs import Programs, built_prometheus
from deploy.prometheus.server import RULES, Server, ServerWish, running_prometheus

POLL_S = 0.1

Labels = frozenset[tuple[str, str]]


class BadQuery(Exception):
    """Prometheus refused a question; the text is its own."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server; times are seconds since 1970."""

    server: Server

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.server.url

    def query(self, expression: str, at_s: float | None = None) -> dict[Labels, float]:
        """The vector that an expression is now, or was then, by labels (`__name__` included). Raises BadQuery.

        A scalar is a vector of one series without labels.
        """
        found = self._ask("query", query=expression, **({} if at_s is None else {"time": str(at_s)}))
        if found["resultType"] == "scalar":
            return {frozenset(): float(found["result"][1])}
        assert found["resultType"] == "vector", f"{expression} is a {found['resultType']}"
        return {labels_of(one["metric"]): float(one["value"][1]) for one in found["result"]}

    def value(self, expression: str, at_s: float | None = None) -> float:
        """The one number that an expression is. Raises BadQuery."""
        found = self.query(expression, at_s)
        assert len(found) == 1, f"{expression} has {len(found)} series: {list(found)[:5]}"
        return next(iter(found.values()))

    def query_range(
        self, expression: str, start_s: float, end_s: float, step_s: float
    ) -> dict[Labels, list[tuple[float, float]]]:
        """What an expression was over a time: (moment, value) by labels. Raises BadQuery."""
        found = self._ask(
            "query_range", query=expression, start=str(start_s), end=str(end_s), step=str(step_s)
        )
        return {
            labels_of(one["metric"]): [(float(at), float(value)) for at, value in one["values"]]
            for one in found["result"]
        }

    def series(self, *selectors: str) -> list[dict[str, str]]:
        """The labels of every series that one of the selectors takes."""
        found: list[dict[str, str]] = self._ask("series", **{"match[]": selectors})
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing now: labels, annotations, state, value."""
        found: list[dict[str, Any]] = self._ask("alerts")["alerts"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health, last error and last evaluation."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def await_rules(self, patience_s: float = 30.0) -> None:
        """Wait until every rule was evaluated, and see that none failed."""
        self._await(
            self.rules,
            lambda found: bool(found) and all(one["health"] != "unknown" for one in found),
            "not every rule was evaluated",
            patience_s,
        )
        bad = {one["name"]: one.get("lastError") for one in self.rules() if one["health"] != "ok"}
        assert not bad, bad

    def parse(self, expression: str) -> dict[str, Any]:
        """An expression as Prometheus' own parser sees it: nodes with `type`, selectors with their matchers."""
        found: dict[str, Any] = self._ask("parse_query", query=expression)
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped: labels, health, last error."""
        found: list[dict[str, Any]] = self._ask("targets", state="active")["activeTargets"]
        return found

    def await_targets(self, patience_s: float = 30.0) -> None:
        """Wait until every target was scraped well."""
        self._await(
            self.targets,
            lambda found: bool(found) and all(one["health"] == "up" for one in found),
            "not every target is up",
            patience_s,
        )

    def await_query(
        self,
        expression: str,
        holds: Callable[[dict[Labels, float]], bool] = bool,
        patience_s: float = 60.0,
    ) -> dict[Labels, float]:
        """Wait until what an expression is fits, and answer it. Raises BadQuery."""
        return self._await(lambda: self.query(expression), holds, expression, patience_s)

    def _await(
        self, read: Callable[[], Any], holds: Callable[[Any], bool], what: str, patience_s: float
    ) -> Any:
        deadline = time.monotonic() + patience_s
        while not holds(found := read()):
            assert time.monotonic() < deadline, f"did not come true in time: {what}; last seen: {found}"
            time.sleep(POLL_S)
        return found

    def _ask(self, path: str, **parameters: str | Sequence[str]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters, doseq=True)}"
        try:
            with urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise BadQuery(f"{parameters.get('query', path)}: {json.load(error)['error']}") from error


def labels_of(metric: Mapping[str, str]) -> Labels:
    """Labels that can be looked up: `labels_of({"organization": "alpha"})`."""
    return frozenset(metric.items())


def programs() -> Programs:
    """The built programs."""
    found = built_prometheus()
    # Building takes longer than a test may.
    assert found is not None, "Prometheus is not built yet: run `make prometheus`"
    return found


def promtool(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; its exit status says whether all was well, `stdout` has all that it wrote."""
    return subprocess.run(
        (str(programs().promtool), *map(str, arguments)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextmanager
def a_prometheus(
    folder: Path,
    targets: Mapping[str, Sequence[str]],
    *,
    interval_s: float = 1.0,
    rules: tuple[Path, ...] = RULES,
    history: str = "",
    token: str = "",
) -> Iterator[Prometheus]:
    """A Prometheus that lives as long as the block, on a free port of the loopback interface.

    `targets` are addresses (HOST:PORT) by job: quota, scheduler, agent. `history` is OpenMetrics text with timestamps
    (and `# EOF`) that it has stored already when it starts. `token`: what the quota service wants of callers that are
    not on this machine.
    """
    built = programs()
    if history:
        _store(built, folder, history)
    wish = ServerWish(targets, interval_s=interval_s, rules=rules, token=token)
    with running_prometheus(folder, built, wish, print) as server:
        yield Prometheus(server)


def _store(built: Programs, folder: Path, history: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "history.txt"
    text.write_text(history)
    done = subprocess.run(
        (
            *(str(built.promtool), "tsdb", "create-blocks-from", "openmetrics"),
            str(text),
            str(folder / "data"),
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
