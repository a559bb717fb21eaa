"""Numbers for names in a saved state: who is who is told nowhere, and everything is decided as before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

_OF_FIELD: Mapping[str, str] = {
    "organization_id": "organization",
    "organization": "organization",
    "program_id": "program",
    "program": "program",
    "grant_id": "grant",
    "grant": "grant",
    "account": "account",
    "account_id": "account",
}
"""What kind of name a field of this name holds, where it holds a text."""
_HAVE_IDS = frozenset(_OF_FIELD.values())
"""Kinds of objects whose own `id` is such a name."""

_Rename = Callable[[str, str], str]


def with_pseudonyms(document: dict[str, Any]) -> dict[str, Any]:
    """The same document with a number for each organization, programme, grant and account.

    The numbers have the order of the names, because the core breaks ties by them.
    """
    names: defaultdict[str, set[str]] = defaultdict(set)

    def collect(kind: str, name: str) -> str:
        if name:
            names[kind].add(name)
        return name

    _walk(document, "", collect)
    numbers = {
        kind: {
            name: f"{kind}-{number:0{len(str(len(found)))}}" for number, name in enumerate(sorted(found), 1)
        }
        for kind, found in names.items()
    }
    renamed: dict[str, Any] = _walk(document, "", lambda kind, name: numbers[kind][name] if name else name)
    return renamed


def _walk(value: Any, kind: str, rename: _Rename) -> Any:
    """A copy of a JSON value; `kind` is what an object's `id` names, if it names anything."""
    if isinstance(value, list):
        return [_walk(entry, kind, rename) for entry in value]
    if not isinstance(value, dict):
        return value
    # an item of the feed says itself what it is
    own = str(value["kind"]) if "seq" in value and "kind" in value else kind
    return {name: _renamed(name, entry, own, rename) for name, entry in value.items()}


def _renamed(name: str, entry: Any, kind: str, rename: _Rename) -> Any:
    if isinstance(entry, str):
        of_field = kind if name == "id" else _OF_FIELD.get(name, "")
        return rename(of_field, entry) if of_field in _HAVE_IDS else entry
    return _walk(entry, "account" if name == "accounts" else name, rename)
