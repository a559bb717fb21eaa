"""Which GPU class a product's name stands for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

# H100, A100, GH200, L40S, V100, T4, B200: the first word of letters and digits that begins like a data centre's GPU.
_MODEL = re.compile(r"\b(G?[A-Z]{1,2}[0-9]{1,4}S?)\b")
_PROFILE = re.compile(r"\bMIG ([0-9][0-9a-z.+]*)", re.IGNORECASE)


def gpu_class(name: str, parent_name: str, classes: Mapping[str, str]) -> str:
    """`NVIDIA H100 80GB HBM3` is `h100`; a MIG device of it (`… MIG 1g.10gb`) is `h100-1g.10gb`.

    `classes` are the operator's own, by the whole name; one of a GPU counts for its MIG devices too.
    """
    if name in classes:
        return classes[name]
    if not parent_name:
        return _of_model(name)
    base = classes.get(parent_name) or _of_model(parent_name)
    profile = _PROFILE.search(name)
    return f"{base}-{_word(profile[1]) if profile else 'mig'}"[:63]


def _of_model(name: str) -> str:
    found = _MODEL.search(name)
    return (found[1].lower() if found else _word(name.removeprefix("NVIDIA "))) or "unknown"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("+", ".")).strip("-.")[:63]
