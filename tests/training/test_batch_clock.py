"""Waiting for batches: time of the process, or of a GPU, which is played by events of a test."""

import time
from typing import Any

import pytest
import torch

from lungseg.training import batch_clock
from lungseg.training.batch_clock import BatchClock


class Batch:
    """A batch whose copy to the GPU takes 2 ms longer than anything before it."""

    def wait_for_copy(self) -> None:
        Event.now += 2.0


def _slow_batches() -> Any:
    for _ in range(3):
        time.sleep(0.02)
        yield Batch()


def test_a_process_waits_while_batches_are_made() -> None:
    clock = BatchClock()
    assert len(list(clock.timed(_slow_batches()))) == 3
    assert 0.06 <= clock.waited <= clock.seconds


class Event:
    """An event of a GPU that works on each batch for 5 ms and has nothing to do for 1 ms and the copy before it."""

    now, done = 0.0, True

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = Event.now
        Event.now += 1.0

    def query(self) -> bool:
        return Event.done

    def elapsed_time(self, other: "Event") -> float:
        return other.time - self.time


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_waits_between_its_events(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_clock.torch.cuda, "Event", Event)
    Event.now, Event.done = 0.0, False
    clock = BatchClock(torch.device(device))
    for _ in clock.timed(_slow_batches()):
        Event.now += 5.0
        assert clock.waited == 0.0  # reading it does not wait for the GPU
    Event.done = True
    assert clock.waited == pytest.approx((4 * 1 + 3 * 2) * 1e-3)
    assert clock.seconds >= 0.06
