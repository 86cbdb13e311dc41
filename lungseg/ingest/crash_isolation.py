"""Work that may crash its process, as a codec may on damaged bytes: count the crashes, then isolate each item."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lungseg import storage
from lungseg.ingest.reason_codes import Note, reject
from lungseg.plurals import counted
from lungseg.schema import Record

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

ISOLATE_AFTER, MAX_CRASHES = 2, 5
"""Crashes after which a task processes its items in isolation; crashes that are allowed before the task is given up."""


def mark_started(marker: str) -> int:
    """Write a marker file for a task that starts; return how many earlier attempts crashed.

    The caller deletes the marker at the end of the task, also after an error: only a crash leaves it behind.
    """
    crashes = int(storage.read_json(marker)["times"]) if storage.exists(marker) else 0
    storage.write_json(marker, {"times": crashes + 1})
    return crashes


def too_many_crashes(subject: str, crashes: int) -> str:
    """Return the message for a task that is given up because too many of its workers died."""
    return (
        f"{subject}: {counted(crashes, 'worker')} died while they processed it: they ran out of memory (give Ray "
        "fewer CPUs, so "
        "that fewer run at once) or were killed; finished work is kept, run the same command to try again"
    )


def reject_crashed(record: Record) -> Record:
    """Mark a record as failed because the process that read its files crashed."""
    name = storage.name_of(record.image_uri)
    logger.warning("%s or its mask crashed the process that read it", record.image_uri)
    message = f"{name} or its mask crashed the process that read it: check both files, or remove them"
    return reject(record, Note("crashed", message))


def map_isolated(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | None]:
    """Apply a function to each item in another process, and start a new process after a crash.

    Yields the results in order, and None for an item that crashed the process.
    """
    remaining = deque(items)
    while remaining:
        # Spawned: a forked copy of a process with threads, such as a Ray worker, may hang.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                while remaining:
                    result = pool.submit(function, remaining[0]).result()
                    remaining.popleft()
                    yield result
            except BrokenProcessPool:
                remaining.popleft()
                yield None
