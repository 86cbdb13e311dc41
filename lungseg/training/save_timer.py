"""Ends the batches before the next regular checkpoint if --save-minutes have passed since the last one."""

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import TypeVar

from lungseg.training.distributed import gather
from lungseg.training.loader import Batch

T = TypeVar("T")

_CHECK_INTERVAL = 20  # optimizer steps; a check waits for the other ranks


class SaveTimer:
    """The batches of one rank up to a checkpoint. All ranks end theirs after the same optimizer step."""

    def __init__(self, minutes: float, seconds_since_save: Callable[[], float]) -> None:
        self._minutes, self._seconds_since_save = minutes, seconds_since_save
        self.batches = 0
        """Batches given so far."""
        self._is_due = False

    def limit(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches until a checkpoint is due."""
        updates = 0
        for batch in batches:
            if updates == _CHECK_INTERVAL:
                updates, self._is_due = 0, self._ask_first_rank()
            if self._is_due:
                return
            self.batches += 1
            yield batch
            updates += batch.is_last_in_step

    def match(self, values: Iterable[T]) -> Iterator[T]:
        """Yield values for the batches, and end with them."""
        return takewhile(lambda _: not self._is_due, values)

    def _ask_first_rank(self) -> bool:
        """Return whether a checkpoint is due by the clock of rank 0, equal on every rank."""
        return self._minutes > 0 and gather(self._seconds_since_save() >= 60.0 * self._minutes)[0]
