"""The line about batches and learning rate."""

from typing import Any

import pytest

from lungseg.config import LoaderSettings, OptimSettings, TrainSettings
from lungseg.training.batch_summary import describe_batches


@pytest.mark.parametrize(
    ("changes", "images", "line"),
    [
        (
            {"workers_per_run": 8},
            [768],
            "8 ranks x 8 = 64 images a step, 12 steps an epoch, peak learning rate 1e-4, not scaled",
        ),
        (
            {"workers_per_run": 8, "optim": OptimSettings(scale_lr="linear")},
            [768, 650],
            "8 ranks x 8 = 64 images a step, 11 to 12 steps an epoch, peak learning rate 8e-4, scaled linearly from "
            "1e-4 for 8 images",
        ),
        (
            {"workers_per_run": 2, "optim": OptimSettings(lr=1e-3, scale_lr="sqrt")},
            [20],
            "2 ranks x 8 = 16 images a step, 2 steps an epoch, peak learning rate 1.41e-3, scaled by the square root "
            "from 1e-3 for 8 images",
        ),
        (
            {"loader": LoaderSettings(global_batch_size=8), "optim": OptimSettings(accumulate_steps=2)},
            [9],
            "1 rank x 4 x 2 accumulated batches = 8 images a step, 1 step an epoch, peak learning rate 1e-4, not "
            "scaled",
        ),
    ],
)
def test_the_line_names_batch_steps_and_rate(changes: dict[str, Any], images: list[int], line: str) -> None:
    assert describe_batches(TrainSettings(**changes), images) == line
