"""Writes the checkpoints of a run in a thread, while the run trains on."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class CheckpointWriter:
    """Writes one checkpoint at a time; an error in it is raised by the next call, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the last checkpoint was begun, or since the start."""
        return time.monotonic() - self._started

    def begin(self, write: Callable[[], None]) -> None:
        """Start to write in the thread; the caller has waited for the previous checkpoint."""
        self._started = time.monotonic()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Return once the checkpoint is written.

        Raises:
            InputError: it could not be written, for example on a full disk.

        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last checkpoint, also after an error in the training, which is then the one that is raised."""
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()
