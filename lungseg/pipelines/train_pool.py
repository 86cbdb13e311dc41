"""Several runs of a study in training at once, each watched by a thread of the driver."""

import contextlib
import logging
import queue
import threading
from collections.abc import Generator, Sequence

from lungseg.cluster.resources import WorkerAllocation
from lungseg.errors import LungsegError
from lungseg.pipelines import train_run
from lungseg.plurals import counted
from lungseg.progress import SharedProgressLine
from lungseg.study.study_files import StudyRecord
from lungseg.training.run import Run

_SIGNAL_S = 1.0  # longest time until a signal is noticed
logger = logging.getLogger(__name__)


def train_all(runs: Sequence[Run], at_once: int, allocation: WorkerAllocation, record: StudyRecord) -> list[Exception]:
    """Train the runs, update the study's files after each, and return the failures."""
    line, failures = SharedProgressLine(logger), []
    if len(runs) > 1:
        logger.info("%s to train, %d at once", counted(len(runs), "run"), at_once)
    with contextlib.closing(train_in_threads(runs, at_once, allocation, line)) as results:
        for run, error in results:
            if error is not None:
                failures.append(error)
                is_bug = not isinstance(error, LungsegError)
                record.failures[run.name] = f"{type(error).__name__}: {error}" if is_bug else str(error)
                line.log(run.name, f"failed: {record.failures[run.name]}", logging.ERROR)
                if is_bug:
                    logger.error("%s: unexpected error, probably a bug", run.name, exc_info=error)
            try:
                record.write_states()
            except (LungsegError, OSError) as write_error:  # the other runs continue, and the end writes again
                line.log(run.name, f"could not update the study's files ({write_error})", logging.WARNING)
    return failures


def train_in_threads(
    runs: Sequence[Run], at_once: int, allocation: WorkerAllocation, line: SharedProgressLine
) -> Generator[tuple[Run, Exception | None], None, None]:
    """Train runs in threads and yield each with its error when it ends.

    The threads are daemons, so that Ctrl-C ends the job and its workers at once; an executor would wait for the runs.
    None of them is the main thread, where Ray Train would end the job with status 0.
    """
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[Run, Exception | None]] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                finished.put(_train(waiting.get_nowait(), allocation, line))

    for _ in range(at_once):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in runs:
            yield _wait_for_next(finished)
    finally:
        line.closed.set()
        with contextlib.suppress(queue.Empty):  # if the job ends early, no further run starts
            while True:
                waiting.get_nowait()


def _wait_for_next(finished: queue.SimpleQueue[tuple[Run, Exception | None]]) -> tuple[Run, Exception | None]:
    """Wait for the next run that ends; signals are noticed within a second.

    Python handles signals in the main thread, between two instructions. Without a limit, a signal that arrives just
    before the wait, or that another thread gets, would be noticed only when a run ends, after hours.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return finished.get(timeout=_SIGNAL_S)


def _train(run: Run, allocation: WorkerAllocation, line: SharedProgressLine) -> tuple[Run, Exception | None]:
    try:
        train_run.train(run, allocation, line)
    except Exception as error:  # reported and logged by the main thread
        return run, error
    return run, None
