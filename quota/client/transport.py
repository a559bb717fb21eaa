"""How the client's calls travel: one connection pool, problems as exceptions, an unknown outcome said plainly."""

from __future__ import annotations

import gzip
from types import TracebackType
from typing import Protocol, Self, TypeVar

import httpx2
from pydantic import BaseModel

from quota.addresses import is_encrypted
from quota.refusals import ServiceProblem, ServiceUnavailable, problem_told
from quota.schemas import service

T = TypeVar("T", bound=BaseModel)

PACKED = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
"""The headers of a body that `packed` made."""


class Sink(Protocol):
    """What an answer is written into: a binary file, or what looks like one."""

    def write(self, data: bytes, /) -> int:
        """Take all of it."""
        ...


class Transport:
    """Calls one quota service with one token."""

    def __init__(self, base_url: str, token: str, timeout_s: float = 30.0, language: str = "en") -> None:
        """`language` is an Accept-Language: what problems are told in, `ko` or `en`."""
        self._http = httpx2.Client(
            base_url=base_url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}", "Accept-Language": language},
            timeout=httpx2.Timeout(timeout_s, connect=min(5.0, timeout_s)),
            trust_env=False,
            verify=is_encrypted(base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _get(self, path: str, reply: type[T], patience_s: float = 0.0, **query: object) -> T:
        params = {name: str(value) for name, value in query.items() if value is not None}
        return self._call("GET", path, reply, params=params, patience_s=patience_s)

    def _copy(self, path: str, target: Sink, patience_s: float, params: dict[str, str] | None = None) -> int:
        """Write an answer into `target` as it comes; answers the number of bytes.

        `patience_s` is the longest silence. Raises ServiceUnavailable when the answer breaks off.
        """
        timeout = httpx2.Timeout(patience_s, connect=5.0)
        size = 0
        try:
            with self._http.stream("GET", path, params=params, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    if answer.status_code >= 500:
                        raise ServiceUnavailable(f"GET {path}: {_told(answer)}")
                    raise ServiceProblem(problem_of(answer))
                for chunk in answer.iter_bytes():
                    size += target.write(chunk)
        except httpx2.TransportError as error:
            raise ServiceUnavailable(f"GET {path}: {type(error).__name__} {error}") from error
        return size

    def _read_bytes(self, path: str, **query: object) -> bytes:
        params = {name: str(value) for name, value in query.items() if value is not None}
        return self._request("GET", path, params=params).content

    def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | bytes | None,
        reply: type[T],
        key: str | None = None,
        *,
        if_match: str | None = None,
        **query: object,
    ) -> T:
        """`key` makes sending it again safe, `if_match` refuses if somebody else changed the object meanwhile."""
        params = {name: str(value) for name, value in query.items() if value is not None}
        content = body.model_dump_json().encode() if isinstance(body, BaseModel) else body
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        if if_match is not None:
            headers["If-Match"] = if_match
        return self._call(method, path, reply, params=params, content=content, headers=headers)

    def _call(
        self,
        method: str,
        path: str,
        reply: type[T],
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> T:
        answer = self._request(method, path, params, content, headers, patience_s)
        return reply.model_validate_json(answer.content)

    def _request(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> httpx2.Response:
        timeout = self._http.timeout
        if patience_s:
            timeout = httpx2.Timeout(patience_s + 15.0, connect=5.0)
        try:
            answer = self._http.request(
                method, path, params=params, content=content, headers=headers, timeout=timeout
            )
        except httpx2.TransportError as error:
            raise ServiceUnavailable(f"{method} {path}: {type(error).__name__} {error}".strip()) from error
        if answer.status_code >= 500:
            raise ServiceUnavailable(f"{method} {path}: answered {answer.status_code}")
        if answer.status_code >= 400:
            raise ServiceProblem(problem_of(answer))
        return answer


def packed(body: BaseModel) -> bytes:
    """A body as gzipped JSON, for calls that may be long."""
    return gzip.compress(body.model_dump_json().encode(), 1)


def _told(answer: httpx2.Response) -> str:
    """What is known of a failure: 503 has a problem's code and detail where the service itself could answer."""
    problem = problem_of(answer)
    known = problem.code != f"http_{answer.status_code}"
    return f"{problem.code}: {problem.detail or problem.title}" if known else f"answered {answer.status_code}"


def problem_of(answer: httpx2.Response) -> service.Problem:
    """The problem document of a refusal, or what can be told of an answer that is none."""
    return problem_told(answer.status_code, answer.content)
