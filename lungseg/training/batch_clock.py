"""Time that a rank spends waiting for batches: of its device on a GPU, else of its process."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from lungseg.training.loader import Batch


class BatchClock:
    """Measures elapsed time and the part of it spent waiting for batches.

    On a GPU the process runs ahead of the device. There an event after the work that is queued, and one when the next
    batch is complete on the GPU, measure how long the device had nothing to do; reading them waits for nothing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._start = time.monotonic()
        self._waited = 0.0
        self._has_events = device is not None and device.type == "cuda"
        self._pending: deque[tuple[Any, Any]] = deque()

    @property
    def seconds(self) -> float:
        """Seconds since this clock was created."""
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def waited(self) -> float:
        """Seconds waited for the batches so far; on a GPU, for those that it has started on."""
        while self._pending and self._pending[0][1].query():
            idle, ready = self._pending.popleft()
            self._waited += idle.elapsed_time(ready) / 1000.0
        return self._waited

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches and add the time spent waiting for each to `waited`."""
        iterator = iter(batches)
        while True:
            start, idle = time.monotonic(), self._event()
            batch = next(iterator, None)
            if self._has_events:
                if batch is not None:
                    batch.wait_for_copy()
                self._pending.append((idle, self._event()))
            else:
                self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def _event(self) -> Any:
        """Return an event after the work that is queued on the GPU; None without one."""
        if not self._has_events:
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
