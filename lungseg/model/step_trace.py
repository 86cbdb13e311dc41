"""Record some calls of a function with torch's profiler, as a Chrome trace."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lungseg import storage

P = ParamSpec("P")
T = TypeVar("T")

_MAX_SKIPPED, _MAX_RECORDED = 10, 5  # calls; the first ones allocate memory and choose kernels


def traced(work: Callable[P, T], calls: int, path: str, on_gpu: bool) -> Callable[P, T]:
    """Return `work` with some of its next calls recorded, and written to `path` as Chrome trace JSON.

    calls: number of calls to come. The first half of them is not recorded, ten at most; up to five of the others are.
    The results of `work` stay the same.
    """
    first = min(_MAX_SKIPPED, calls // 2)
    last = min(first + _MAX_RECORDED, calls) - 1
    profiler, count = _profiler(on_gpu), 0

    @functools.wraps(work)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal count
        index, count = count, count + 1
        if not first <= index <= last:
            return work(*args, **kwargs)
        if index == first:
            profiler.start()
        try:
            with record_function(f"lungseg call {index}"):
                result = work(*args, **kwargs)
        except BaseException:
            profiler.stop()
            raise
        if index == last:
            profiler.stop()
            _write(profiler, path)
        return result

    return call


def _profiler(on_gpu: bool) -> profile:
    # The profiler logs an error where there is no GPU, and its own progress.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gpu = [ProfilerActivity.CUDA] if on_gpu and torch.cuda.is_available() else []
    return profile(activities=[ProfilerActivity.CPU, *gpu])


def _write(profiler: profile, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        storage.write_bytes(path, file.read_bytes())
