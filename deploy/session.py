"""Between a command and the service: where it is, who calls, and how a refusal is told.

Exit codes: 0 done, 1 the service refused, 2 wrong usage or configuration, 3 the service is not reachable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import httpx2
import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from deploy.advice import advice_line
from deploy.datadir import write_private
from deploy.show import hours, with_hours
from quota.client import QuotaClient, ServiceProblem, ServiceUnavailable


class Exit(IntEnum):
    """What a script may rely on."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3


class Language(StrEnum):
    """A language that the service speaks."""

    KOREAN = "ko"
    ENGLISH = "en"


class UsageTrouble(Exception):
    """The caller asked for something that cannot be: a wrong value, a missing login."""


def login_file() -> Path:
    """Where `gpuhub login` saves: $GPUHUB_CONFIG/login.json, else ~/.config/gpuhub/login.json."""
    folder = os.environ.get("GPUHUB_CONFIG", "")
    return (Path(folder) if folder else Path.home() / ".config" / "gpuhub") / "login.json"


def save_login(url: str, token: str) -> Path:
    """Remember the service and the token for the next commands (mode 0600). Raises UsageTrouble."""
    path = login_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, {"url": url, "token": token})
    except OSError as error:
        raise UsageTrouble(
            f"{path}: {error.strerror}; set GPUHUB_CONFIG to a folder you can write"
        ) from error
    return path


def find_login() -> tuple[str, str]:
    """Address and token: from GPUHUB_URL and GPUHUB_TOKEN, else as saved. Raises UsageTrouble."""
    url, token = os.environ.get("GPUHUB_URL", ""), os.environ.get("GPUHUB_TOKEN", "")
    if url and token:
        return url, token
    saved = _saved_login()
    url, token = url or saved.get("url", ""), token or saved.get("token", "")
    if not url or not token:
        missing = "address" if not url else "token"
        raise UsageTrouble(
            f"no {missing} of the service is known; run `gpuhub login --url URL --token TOKEN`, "
            "or set GPUHUB_URL and GPUHUB_TOKEN"
        )
    return url, token


def _saved_login() -> dict[str, str]:
    path = login_file()
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageTrouble(f"{path} cannot be read ({error}); run `gpuhub login` again") from error
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


@contextmanager
def told() -> Iterator[None]:
    """Turn what can go wrong with a call into one or two lines on stderr and an exit code."""
    try:
        yield
    except ServiceProblem as problem:
        _leave(Exit.REFUSED, *refusal_lines(problem))
    except ServiceUnavailable as error:
        _leave(
            Exit.UNAVAILABLE, f"the service is not reachable: {error}", "is it running? try again in a moment"
        )
    except ValidationError as error:
        _leave(Exit.USAGE, *validation_lines(error))
    except (UsageTrouble, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        _leave(Exit.USAGE, str(error))


class ToldGroup(TyperGroup):
    """A group of commands none of which ends in a traceback for what its user typed."""

    def invoke(self, ctx: Any) -> object:
        """Run the command; what it refuses becomes lines on stderr and an exit code."""
        with told():
            return super().invoke(ctx)


@contextmanager
def service(lang: Language | None = None) -> Iterator[QuotaClient]:
    """The service of the login, with `told` around it; it speaks `lang`, or what `language()` says."""
    with told():
        url, token = find_login()
        with open_client(url, token, lang) as client:
            yield client


def open_client(url: str, token: str, lang: Language | None = None) -> QuotaClient:
    """A client, or UsageTrouble for an address that no client could use."""
    if not url.startswith(("http://", "https://")):
        raise UsageTrouble(f"--url {url!r} must begin with http:// or https://")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageTrouble("the token holds characters that no token has; copy it again")
    try:
        return QuotaClient(url, token, language=lang.value if lang else language())
    except (httpx2.InvalidURL, ValueError) as error:
        raise UsageTrouble(f"--url {url!r}: {error}") from error


def language() -> str:
    """What sentences and refusals are told in: GPUHUB_LANGUAGE (`ko` or `en`), else as the terminal's locale says."""
    for name in ("GPUHUB_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if chosen := os.environ.get(name, ""):
            return "ko" if chosen.lower().startswith("ko") else "en"
    return "en"


def refusal_lines(problem: ServiceProblem) -> list[str]:
    """Code and reason, what the reason does not tell of fields and numbers, and what to do about it."""
    detail = problem.detail or problem.problem.title
    if [_message(entry) for entry in problem.problem.errors] == [detail]:
        detail = _field_text(problem.problem.errors[0])
    lines = [f"refused ({problem.code}): {with_hours(detail)}"]
    fields = [_field_text(entry) for entry in problem.problem.errors if _message(entry) not in detail]
    numbers = [
        _number_text(name, value)
        for name, value in problem.problem.numbers.items()
        if not _is_told(str(value), detail)
    ]
    if more := fields or numbers:
        lines.append(with_hours(", ".join(more)))
    advice = advice_line(problem.code, problem.problem.numbers)
    return [*lines, advice] if advice else lines


def _is_told(value: str, detail: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_.-]){re.escape(value)}(?![A-Za-z0-9_-])", detail) is not None


def _number_text(name: str, value: int | str) -> str:
    if name.endswith("_gpu_us") and str(value).lstrip("-").isdecimal():
        return f"{name.removesuffix('_gpu_us')} = {hours(int(value))} GPU-h"
    return f"{name} = {value}"


def _field_text(entry: dict[str, str]) -> str:
    where = entry.get("field") or entry.get("loc") or entry.get("pointer") or ""
    return f"{where}: {_message(entry)}".strip(": ")


def _message(entry: dict[str, str]) -> str:
    return entry.get("message") or entry.get("msg") or entry.get("detail") or ""


def validation_lines(error: ValidationError) -> list[str]:
    """One line per wrong field of a request that was not even sent."""
    lines = []
    for wrong in error.errors(include_url=False, include_context=False)[:3]:
        where = ".".join(str(part) for part in wrong["loc"]) or "the request"
        lines.append(
            f"{where} {str(wrong.get('input'))[:60]!r}: {wrong['msg'].removeprefix('Value error, ')}"
        )
    return lines


def _leave(code: Exit, *lines: str) -> None:
    for line in lines:
        typer.echo(f"gpuhub: {line}" if line is lines[0] else f"        {line}", err=True)
    raise typer.Exit(int(code))
