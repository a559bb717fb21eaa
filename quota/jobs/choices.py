"""The GPU classes that a job accepts: the preferred one, and others to fall back on. Stored beside the job."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Row, or_

from quota.jobs.tables import jobs


def classes_of(row: Row[Any]) -> tuple[str, ...]:
    """Every class that a stored job accepts, the preferred one first."""
    return row.gpu_class, *json.loads(row.fallback_classes)


def stored_fallbacks(classes: tuple[str, ...]) -> str:
    """What is stored of the classes after the first."""
    return json.dumps(classes[1:], separators=(",", ":"))


def accepts(gpu_class: str) -> ColumnElement[bool]:
    """Jobs that could run on this class."""
    further = jobs.c.fallback_classes.contains(json.dumps(gpu_class), autoescape=True)
    return or_(jobs.c.gpu_class == gpu_class, further)
