"""Memory settings for networks on CPUs, and for their imports. Does not import torch."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: the imports of torch, timm and smp take a sixth longer with it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
