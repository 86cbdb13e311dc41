"""Stages are timed in turn, in rounds, each beside its limit."""

from collections.abc import Callable

import pytest

from lungseg.bench.timing import Seconds, Stage, measure


def ignore(_: int) -> None:
    """Show no progress."""


def clock_of(durations: list[float]) -> Callable[[Callable[[], object]], Seconds]:
    """Return a clock that runs the work and then takes the next duration for its wall time."""

    def clock(work: Callable[[], object]) -> Seconds:
        work()
        return Seconds(durations.pop(0), 2.0, 3.0)

    return clock


def test_rounds_alternate_between_stages_and_limits() -> None:
    calls: list[str] = []
    stages = [
        Stage(
            "training", name, 1, lambda n, name=name: calls.append(f"{name}{n}"), "x", lambda n: calls.append(f"x{n}")
        )  # type: ignore[misc]
        for name in ("a", "b")
    ]
    rounds: list[int] = []
    times = measure(stages, 2, 60.0, rounds.append)
    assert calls == ["a0", "x0", "b0", "x0"] * 2 + ["a1", "x1", "b1", "x1"]  # the first four warm up
    assert rounds == [1, 2]
    assert [len(entry.ms) for entry in times] == [2, 2]


def test_times_are_ms_an_image_and_limits_are_shared_by_workers() -> None:
    clock = clock_of([8.0, 4.0, 6.0, 2.0])
    stage = Stage("training", "load", 4, ignore, "one by one", ignore, limit_workers=2, clock=clock)
    (times,) = measure([stage], 2, 60.0, ignore)
    assert (times.ms, times.limit_ms) == ([2000.0, 1500.0], [500.0, 250.0])
    assert (times.cpu_ms, times.device_ms) == ([500.0] * 2, [750.0] * 2)
    assert (times.best, times.ratio) == (1500.0, 6.0)  # on a GPU: the wall clock
    line = times.as_json()
    assert (line["ms_min"], line["ms_median"], line["limit_ms_min"], line["rounds"]) == (1500.0, 1750.0, 250.0, 2)


def test_without_a_gpu_cpu_times_are_compared() -> None:
    durations = [Seconds(9.0, 4.0), Seconds(1.0, 2.0)]
    stage = Stage("inference", "finish", 1, ignore, "bare", ignore, clock=lambda _: durations.pop(0))
    (times,) = measure([stage], 1, 60.0, ignore)
    assert times.ratio == 2.0


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 2), (60.0, 3)])
def test_two_rounds_are_measured_however_slow_they_are(seconds: float, rounds: int) -> None:
    (times,) = measure([Stage("inference", "slow", 1, ignore)], 3, seconds, ignore)
    assert len(times.ms) == rounds
    assert times.ratio is None
    assert times.as_json()["limit_ms_min"] is None
