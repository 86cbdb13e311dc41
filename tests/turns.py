"""Alternate a job and plain loops on one machine: the job is paused while the loops run.

The speed of a shared machine changes within minutes. Alternating exposes both to the same conditions.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

TESTS = Path(__file__).resolve().parent
EVERY_S, BARE_S = 15.0, 4.0


class BareLoops:
    """Processes that work at the same time on request; each runs `code`, which calls `answer`."""

    def __init__(self, code: str, count: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
            for _ in range(count)
        ]
        self.rates: list[float] = []
        self._request(0.5)  # waits until all have started

    def work(self) -> None:
        """Let all processes work for BARE_S seconds and record their total images/s."""
        self.rates.append(self._request(BARE_S))

    def rate(self) -> float:
        """Return the mean images/s of all turns."""
        return sum(self.rates) / len(self.rates)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            pipe(process.stdin).close()
            process.wait()

    def _request(self, seconds: float) -> float:
        for process in self._processes:
            print(seconds, file=pipe(process.stdin), flush=True)
        return sum(float(pipe(process.stdout).readline()) for process in self._processes)


class Turns:
    """Pauses a job and its child processes after every EVERY_S seconds of work, while the loops run for BARE_S."""

    def __init__(self, process: int, loops: BareLoops) -> None:
        self.paused = 0.0
        self._process, self._loops = process, loops
        self._began, self._next = time.perf_counter(), EVERY_S

    def take(self) -> None:
        """Pause the job and run the loops if their turn has come."""
        if time.perf_counter() - self._began - self.paused < self._next:
            return
        self._next += EVERY_S
        family = relatives(self._process)
        stopped = time.perf_counter()
        for process in family:
            send(process, signal.SIGSTOP)
        self._loops.work()
        for process in family:
            send(process, signal.SIGCONT)
        self.paused += time.perf_counter() - stopped


def answer(work: Iterator[int]) -> None:
    """For each line of standard input, a number of seconds, run `work` for that time and print the images/s."""
    for line in sys.stdin:
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            done += next(work)
        sys.stdout.write(f"{done / (time.perf_counter() - began)}\n")
        sys.stdout.flush()


def relatives(process: int) -> list[psutil.Process]:
    """Return a process and its descendants; an empty list if it has ended."""
    try:
        driver = psutil.Process(process)
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def pipe(end: IO[str] | None) -> IO[str]:
    """Return a pipe of a process that was started with pipes."""
    assert end is not None
    return end
