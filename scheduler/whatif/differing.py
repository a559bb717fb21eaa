"""One future minus another, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def minus(changed: M, base: M) -> M:
    """Of two models that hold nothing but numbers: `changed` - `base`; what only one names is 0 in the other."""
    return type(changed).model_validate(_minus(changed.model_dump(), base.model_dump()))


def _minus(changed: Any, base: Any) -> Any:
    if isinstance(changed, Mapping) or isinstance(base, Mapping):
        return {
            name: _minus((changed or {}).get(name, 0), (base or {}).get(name, 0))
            for name in {**(base or {}), **(changed or {})}
        }
    return changed - base
