"""Work that may end its process (a codec may crash over broken bytes): its deaths counted, then each piece apart."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lungseg import storage
from lungseg.ingest.reason_codes import Note, reject
from lungseg.schema import Record

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

ISOLATE_AFTER, MAX_CRASHES = 2, 5
"""Processes that died over a piece of work, until it is done apart; until it is given up."""


def mark_started(note: str) -> int:
    """Note in a file that a piece of work begins; return how many earlier attempts ended with their process.

    Who ends it deletes the note, whether it went well or not: only a process that dies leaves it behind.
    """
    deaths = int(storage.read_json(note)["times"]) if storage.exists(note) else 0
    storage.write_json(note, {"times": deaths + 1})
    return deaths


def too_many_crashes(subject: str, deaths: int) -> str:
    """Return the message for work that is given up because its processes died."""
    return (
        f"{subject}: {deaths} workers died while they processed it: they ran out of memory (give Ray fewer CPUs, so "
        "that fewer run at once) or were killed; finished work is kept, run the same command to try again"
    )


def reject_crashed(record: Record) -> Record:
    """Say of a record that the process which read it died over it."""
    name = storage.name_of(record.image_uri)
    logger.warning("%s ended the process that read it", record.image_uri)
    message = f"{name} or its mask crashed the process that read it: check both files, or remove them"
    return reject(record, Note("crashed", message))


def map_isolated(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | None]:
    """Call a function for each item in another process, and start a new one where it died: None for that item."""
    left = deque(items)
    while left:
        # Spawned: a copy of a process that has threads, as a worker of Ray has, may hang.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                while left:
                    result = pool.submit(function, left[0]).result()
                    left.popleft()
                    yield result
            except BrokenProcessPool:
                left.popleft()
                yield None
