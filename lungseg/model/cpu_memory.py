"""Memory of a process whose network runs on CPUs: kept from step to step, not given back and taken anew. No torch."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h, M_TRIM_THRESHOLD and M_MMAP_MAX


def keep_freed_memory() -> None:
    """Have the C library keep what it got, and torch take it in huge pages.

    The steps of a network free and take tensors of many MiB. By default each goes back to the kernel and comes anew,
    page by page, cleared: half of the time at 512 px. With another C library than glibc nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_MMAP_MAX, 0)
