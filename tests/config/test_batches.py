"""Division of a global batch among ranks and accumulated batches."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import ComputeSettings, LoaderSettings, OptimSettings, TrainSettings
from lungseg.config.batches import global_batch_problem
from lungseg.config.command_line import parse
from lungseg.errors import SettingsError

FROZEN = ComputeSettings(batch_norm="frozen")


def settings(global_size: int, ranks: int, **more: Any) -> TrainSettings:
    return TrainSettings(loader=LoaderSettings(global_batch_size=global_size), workers_per_run=ranks, **more)


@pytest.mark.parametrize(("ranks", "accumulated", "size"), [(1, 1, 8), (2, 1, 4), (4, 1, 2), (1, 2, 4), (2, 2, 2)])
def test_each_rank_takes_its_share(ranks: int, accumulated: int, size: int) -> None:
    planned = settings(8, ranks, optim=OptimSettings(accumulate_steps=accumulated))
    assert (planned.rank_batch_size, planned.step_size) == (size, 8)


def test_without_a_global_batch_each_rank_takes_8() -> None:
    assert [(s.rank_batch_size, s.step_size) for s in (settings(0, 1), settings(0, 3))] == [(8, 8), (8, 24)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (8, 3, 1, 2),
            "8 cannot be divided equally among 3 ranks: pass --workers-per-run 1, 2 or 4, or "
            "--loader.global-batch-size 6 or 9",
        ),
        (
            (12, 5, 1, 1),
            "12 cannot be divided equally among 5 ranks: pass --workers-per-run 2, 3, 4, 6 or 12, or "
            "--loader.global-batch-size 10 or 15",
        ),
        (
            (9, 2, 2, 1),
            "9 cannot be divided equally among 2 ranks x 2 accumulated batches: pass --loader.global-batch-size 8 or "
            "12",
        ),
        ((1, 2, 1, 2), "1 cannot be divided equally among 2 ranks: pass --loader.global-batch-size 4"),
        (
            (8, 8, 1, 2),
            "8 is 1 image for each of 8 ranks, but batch norm has no variance over one image: pass --workers-per-run "
            "1, 2 or 4, or --loader.global-batch-size 16, or --compute.batch-norm sync (GPUs) or frozen",
        ),
    ],
)
def test_an_uneven_division_names_possible_values(values: tuple[int, int, int, int], message: str) -> None:
    assert global_batch_problem(*values) == f"--loader.global-batch-size {message}"


def test_named_values_are_possible() -> None:
    for total in range(1, 40):
        for ranks in range(1, 7):
            problem = global_batch_problem(total, ranks, 1, 2)
            sizes = problem.partition("size ")[2].partition("size ")[2].partition(", or")[0].replace(" or ", ", ")
            assert all(not global_batch_problem(int(size), ranks, 1, 2) for size in sizes.split(", ") if size)


def test_one_image_per_rank_needs_shared_or_frozen_statistics() -> None:
    with pytest.raises(ValidationError, match="1 image for each of 8 ranks"):
        settings(8, 8)
    assert settings(8, 8, compute=FROZEN).rank_batch_size == 1
    assert settings(8, 8, compute=ComputeSettings(batch_norm="sync")).rank_batch_size == 1


def test_contradicting_batch_sizes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"batch-size 16 makes 16 images a step, --loader.global-batch-size says 8"):
        parse("train", ["paper", "--loader.batch-size", "16"])
    agreeing = ["paper", "--loader.batch-size", "2", "--workers-per-run", "4"]
    assert parse("train", agreeing).step_size == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_reference_recipe_keeps_8_images_a_step(ranks: int) -> None:
    assert parse("train", ["paper", "--workers-per-run", str(ranks)]).step_size == 8  # type: ignore[attr-defined]


def test_automatic_workers_are_checked_later() -> None:
    automatic = TrainSettings(loader=LoaderSettings(global_batch_size=8), workers_per_run="auto")
    assert automatic.batch_problem() == ""
    assert "cannot be divided" in automatic.model_copy(update={"workers_per_run": 3}).batch_problem()
