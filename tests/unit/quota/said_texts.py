"""What the service's code says to callers: the templates of its errors, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import quota
import quota.app
from quota.errors import HubError

ROOT = Path(quota.__file__).parent


@dataclass(frozen=True, slots=True)
class Said:
    """One place that raises: its template, or None where it is put together at run time."""

    where: str
    kind: str
    template: str | None


def error_classes() -> dict[str, type[HubError]]:
    """HubError and all below it, by the name in the code."""
    found: dict[str, type[HubError]] = {}
    pending: list[type[HubError]] = [HubError]
    for kind in pending:
        found[kind.__name__] = kind
        pending.extend(kind.__subclasses__())
    return found


def said(source: str, where: str, kinds: set[str]) -> Iterator[Said]:
    """Every call in a source text of an error or of `wrong`, with the template it is given."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in kinds or not (node.args or name == "wrong"):
            continue
        first = node.args[0]
        known = isinstance(first, ast.Constant) and isinstance(first.value, str)
        yield Said(f"{where}:{node.lineno}", name, str(first.value) if known else None)


def everything_said() -> list[Said]:
    """Of all of `quota/`."""
    kinds = set(error_classes()) | {"wrong"}
    found: list[Said] = []
    for path in sorted(ROOT.rglob("*.py")):
        if "migrations" not in path.parts:
            found.extend(said(path.read_text(), str(path.relative_to(ROOT)), kinds))
    return found
