"""Asks the C library to keep little memory that nobody uses; on another one than glibc nothing happens."""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of malloc.h."""

_LARGE_BYTES = 64 << 10


def keep_little() -> None:
    """All threads share one heap, and what is large goes back to the system when it is freed.

    By default each thread gets a heap of its own, and what counts as large grows with what was freed. Call it before
    there are threads.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Collect what start-up left behind, and give free memory back to the system."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
