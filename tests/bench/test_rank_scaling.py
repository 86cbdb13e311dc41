"""Training steps on several ranks of one machine."""

import pytest
import torch

from lungseg.bench.rank_scaling import measure_ranks, time_steps, world_sizes
from lungseg.config import BenchSettings, LoaderSettings, ModelSettings

SETTINGS = BenchSettings(
    size=64,
    model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
    loader=LoaderSettings(batch_size=2),
)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_ranks_double_up_to_the_largest_number(most: int, sizes: list[int]) -> None:
    assert world_sizes(most) == sizes


def test_a_rank_reports_images_of_all_ranks_per_second() -> None:
    line = time_steps(SETTINGS.training, 64, torch.device("cpu"), steps=1)
    assert line["workers"] == 1
    assert line["images_per_second"] == pytest.approx(2000.0 / line["step_ms"], rel=1e-2)


@pytest.mark.slow
def test_two_ranks_train_together() -> None:
    lines = list(measure_ranks(SETTINGS, 64, on_gpus=False, most=2))
    assert [line["workers"] for line in lines] == [1, 2]
    assert lines[0]["speedup"] == 1.0
    assert lines[1]["speedup"] == pytest.approx(lines[1]["images_per_second"] / lines[0]["images_per_second"], rel=0.01)
