"""A checkpoint by time: every rank ends its batches after the same optimizer step."""

from typing import Any

import pytest
import torch

from lungseg.training import save_timer
from lungseg.training.loader import Batch
from lungseg.training.save_timer import SaveTimer

NOTHING = torch.zeros(0)


def batches(count: int, per_step: int = 1) -> list[Batch]:
    return [Batch(NOTHING, NOTHING, (), 1, is_last_in_step=(i + 1) % per_step == 0) for i in range(count)]


@pytest.mark.parametrize(("per_step", "expected"), [(1, 40), (2, 80)])
def test_batches_end_after_a_whole_step_once_the_minutes_have_passed(per_step: int, expected: int) -> None:
    seconds = iter([59.0, 60.0])
    timer = SaveTimer(1.0, lambda: next(seconds))
    rates = timer.match(range(100))
    given = [(batch, next(rates)) for batch in timer.limit(batches(100, per_step))]
    assert len(given) == timer.batches == expected
    assert given[-1][0].is_last_in_step
    assert list(rates) == []


def test_batches_and_their_rates_end_together() -> None:
    for minutes in (0.0, 1e-9, 10.0):
        timer = SaveTimer(minutes, lambda: 1.0)
        pairs = list(zip(timer.limit(batches(50)), timer.match(range(50)), strict=True))
        assert len(pairs) == (20 if minutes == 1e-9 else 50)


def test_the_clock_of_rank_0_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def gather(own: bool) -> list[Any]:
        asked.append(own)
        return [False, own]

    monkeypatch.setattr(save_timer, "gather", gather)
    timer = SaveTimer(1.0, lambda: 1e6)
    assert len(list(timer.limit(batches(50)))) == 50
    assert asked == [True, True]
