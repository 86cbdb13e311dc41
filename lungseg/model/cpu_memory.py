"""Memory allocator settings for networks on CPUs. Does not import torch."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the system, and let torch allocate huge pages.

    Each step of a network frees and allocates tensors of many MiB. By default glibc returns each one to the kernel and
    requests it again, and the kernel clears every page: half of the time at 512 px. Other C libraries are unaffected.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # never shrink the heap
        mallopt(_MMAP_MAX, 0)  # allocate large blocks on the heap too
