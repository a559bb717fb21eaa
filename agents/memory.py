"""Asks the C library to keep little memory that nobody uses; on another one than glibc nothing happens."""

from __future__ import annotations

import ctypes
import gc

_ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""


def keep_one_arena() -> None:
    """All threads share one heap; by default each gets one of its own. Call it before there are threads."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Collect what start-up left behind, and give free memory back to the system."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
