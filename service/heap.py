"""The C library's heap, which keeps what large pictures leave: hundreds of megabytes a thread."""

from __future__ import annotations

import ctypes

# Only glibc has it; other libraries' heaps give back by themselves.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def trim() -> None:
    """Give back to the system what is free, which takes some milliseconds."""
    if _malloc_trim:
        _malloc_trim(0)
