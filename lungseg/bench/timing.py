"""Time stages in rounds, each beside the least work that gives the same result."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

Path = Literal["training", "inference"]
Work = Callable[[int], object]
"""Does one call's work on the images of a round; the argument is the number of the round."""


class Seconds(NamedTuple):
    """Duration of a call: on the wall clock, of all cores of this process, and of the GPU if there is one."""

    wall: float
    cpu: float
    device: float | None = None


Clock = Callable[[Callable[[], object]], Seconds]
"""Runs a function and measures it."""

MIN_ROUNDS = 2


def cpu_clock(work: Callable[[], object]) -> Seconds:
    """Run a function on CPUs and measure it."""
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - began, time.process_time() - cpu_began)


@dataclass(frozen=True)
class Stage:
    """One stage and its limit: the least work that gives the same result.

    images: images of one call. limit_name: what the limit does. limit_workers: workers that share the limit's work, so
    that its time is divided by their number. clock: measures one call. part_of: name of the stage that contains it.
    """

    path: Path
    name: str
    images: int
    work: Work
    limit_name: str = ""
    limit: Work | None = None
    limit_workers: int = 1
    clock: Clock = cpu_clock
    part_of: str = ""


@dataclass
class StageTimes:
    """Times of one stage in ms an image, one of each round.

    ms: on the wall clock. cpu_ms: of all cores of this process. limit_ms, limit_cpu_ms: of the limit. device_ms: of the
    GPU, empty without one.
    """

    stage: Stage
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    limit_ms: list[float] = field(default_factory=list)
    limit_cpu_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The minimum in ms an image: on a busy machine it is nearest to the time of the stage alone."""
        return min(self.ms)

    @property
    def ratio(self) -> float | None:
        """How many times the limit the stage takes; None without a limit.

        From the CPU times, which other work on the machine hardly changes; with a GPU, from the wall clock.
        """
        stage, limit = (self.ms, self.limit_ms) if self.device_ms else (self.cpu_ms, self.limit_cpu_ms)
        return min(stage) / max(min(limit), 1e-9) if limit else None

    def as_json(self) -> dict[str, Any]:
        """Return names, minima and medians."""
        stage = self.stage
        return {
            "path": stage.path,
            "stage": stage.name,
            "part_of": stage.part_of,
            "images_per_call": stage.images,
            "rounds": len(self.ms),
            **_summary("ms", self.ms),
            **_summary("cpu_ms", self.cpu_ms),
            "limit": stage.limit_name,
            **_summary("limit_ms", self.limit_ms),
            **_summary("limit_cpu_ms", self.limit_cpu_ms),
            **_summary("device_ms", self.device_ms),
        }


def measure(
    stages: Sequence[Stage], rounds: int, seconds: float, on_round: Callable[[int], None], warm_up: int = 1
) -> list[StageTimes]:
    """Time all stages and limits in turn, and return the times of every round.

    Something else that runs meanwhile, or a change of the processor's speed, so affects all of them alike. Stops after
    `rounds` rounds, or after `seconds` and two rounds. warm_up: calls of each stage before the first round.
    on_round: called with the number of finished rounds.
    """
    times = [StageTimes(stage) for stage in stages]
    for number in range(warm_up):
        for stage in stages:
            stage.work(number)
            if stage.limit is not None:
                stage.limit(number)
    began = time.monotonic()
    for number in range(rounds):
        for entry in times:
            _time_round(entry, number)
        on_round(number + 1)
        if number + 1 >= MIN_ROUNDS and time.monotonic() - began > seconds:
            break
    return times


def _time_round(entry: StageTimes, number: int) -> None:
    stage = entry.stage
    clock, unit = stage.clock, 1000.0 / stage.images
    seconds = clock(lambda: stage.work(number))
    entry.ms.append(seconds.wall * unit)
    entry.cpu_ms.append(seconds.cpu * unit)
    if seconds.device is not None:
        entry.device_ms.append(seconds.device * unit)
    limit = stage.limit
    if limit is not None:
        seconds = clock(lambda: limit(number))
        entry.limit_ms.append(seconds.wall * unit / stage.limit_workers)
        entry.limit_cpu_ms.append(seconds.cpu * unit)


def _summary(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        f"{name}_min": round(min(values), 4) if values else None,
        f"{name}_median": round(median(values), 4) if values else None,
    }
