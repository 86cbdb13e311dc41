"""Two loads of one machine measured in turns: a job, which is stopped now and then, and bare loops, which work then.

A machine that others use too changes its speed within minutes; in turns both loads meet it as it is just then.
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
    """Processes that work when they are told to, all at once: each runs `code`, which calls `answer`."""

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
        self._ask(0.5)  # they have begun

    def work(self) -> None:
        """Work for some seconds, and note how many images/s all of them did together."""
        self.rates.append(self._ask(BARE_S))

    def rate(self) -> float:
        """Images/s of all turns, which are equally long."""
        return sum(self.rates) / len(self.rates)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            pipe(process.stdin).close()
            process.wait()

    def _ask(self, seconds: float) -> float:
        for process in self._processes:
            print(seconds, file=pipe(process.stdin), flush=True)
        return sum(float(pipe(process.stdout).readline()) for process in self._processes)


class Turns:
    """Stops a job and all below it every fifteen seconds of its own time, for bare loops to work for four."""

    def __init__(self, process: int, loops: BareLoops) -> None:
        self.paused = 0.0
        self._process, self._loops = process, loops
        self._began, self._next = time.perf_counter(), EVERY_S

    def take(self) -> None:
        """Give the bare loops their turn, if it is theirs."""
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
    """For each line of seconds draw from `work`, which does so many images a time, so long, and print images/s."""
    for line in sys.stdin:
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(line):
            done += next(work)
        sys.stdout.write(f"{done / (time.perf_counter() - began)}\n")
        sys.stdout.flush()


def relatives(process: int) -> list[psutil.Process]:
    """List a process and all below it; none where it has ended."""
    try:
        driver = psutil.Process(process)
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to what may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def pipe(end: IO[str] | None) -> IO[str]:
    """Say that an end of a pipe is there."""
    assert end is not None
    return end
