"""Reads the GPUs of a simulated cluster through its HTTP door.

An answer is checked by the wire's own types: a name that the quota service would refuse is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter, ValidationError

from agents.gpus.nvml.codes import xid_class
from agents.gpus.port import ReaderUnavailable
from agents.model import NodeReading
from quota.addresses import is_encrypted

T = TypeVar("T")

SAMPLE_PERIOD_MS = 10_000
"""The simulated driver's sample period unless its cluster was started with another one."""


@dataclass(frozen=True, slots=True)
class _LostNode:
    node: str
    lost: Literal[True]


@dataclass(frozen=True, slots=True)
class _AllNodes:
    now_ms: int
    nodes: tuple[NodeReading | _LostNode, ...]


class SimulatedReader:
    """Asks one simulated cluster; thread-safe, one connection pool."""

    def __init__(
        self,
        base_url: str,
        token: str = "",
        sample_period_ms: int = SAMPLE_PERIOD_MS,
        timeout_s: float = 5.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._sample_period_ms = sample_period_ms
        self._http = httpx2.Client(
            base_url=base_url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=httpx2.Timeout(timeout_s, connect=min(2.0, timeout_s)),
            trust_env=False,
            verify=is_encrypted(base_url),
            transport=transport,
        )
        self._node = TypeAdapter(NodeReading)
        self._all = TypeAdapter(_AllNodes)

    @property
    def sample_period_ms(self) -> int:
        """How often the simulated driver samples, in business milliseconds."""
        return self._sample_period_ms

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def read(self, node: str, after_ms: int) -> NodeReading:
        """One node's GPUs with the samples newer than `after_ms`. Raises ReaderUnavailable."""
        return _classed(self._get(f"/v1/nodes/{quote(node, safe='')}/gpus", after_ms, self._node))

    def read_all(self, after_ms: int) -> tuple[NodeReading, ...]:
        """All nodes that are not lost, in one request. Raises ReaderUnavailable."""
        nodes = self._get("/v1/gpus", after_ms, self._all).nodes
        return tuple(_classed(node) for node in nodes if isinstance(node, NodeReading))

    def _get(self, path: str, after_ms: int, shape: TypeAdapter[T]) -> T:
        try:
            answer = self._http.get(path, params={"after_ms": after_ms})
        except httpx2.HTTPError as error:
            raise ReaderUnavailable(f"GET {path}: {type(error).__name__}: {error}") from error
        if answer.status_code != 200:
            raise ReaderUnavailable(f"GET {path}: status {answer.status_code}")
        try:
            return shape.validate_json(answer.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ReaderUnavailable(f"GET {path}: not a reading: {where}: {first['msg']}") from error


def _classed(reading: NodeReading) -> NodeReading:
    """With the class of each XID, which the cluster leaves to the agent."""
    if not any(gpu.detail is not None and gpu.detail.xids for gpu in reading.gpus):
        return reading
    gpus = []
    for gpu in reading.gpus:
        detail = gpu.detail
        if detail is not None and detail.xids:
            xids = tuple(replace(xid, xid_class=str(xid_class(xid.xid))) for xid in detail.xids)
            gpu = replace(gpu, detail=replace(detail, xids=xids))
        gpus.append(gpu)
    return replace(reading, gpus=tuple(gpus))
