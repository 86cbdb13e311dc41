"""Runs of a study: one per protocol, datasets, fold and seed, each with its own settings and name."""

from pathlib import Path

import pytest

from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.study import study_plan
from lungseg.training.study_data import open_training_data


@pytest.fixture(scope="module")
def data(prepared: Path) -> list[PreparedDataset]:
    return open_training_data([str(prepared / "north"), str(prepared / "south")])


def names(settings: TrainSettings, data: list[PreparedDataset]) -> dict[str, str]:
    """Return the names of the runs by the readable part of the name."""
    plans = study_plan.name_plans(settings, study_plan.plan_runs(settings, data), data)
    return {plan.name: name for name, plan in plans.items()}


def test_each_run_is_planned_once_per_seed(data: list[PreparedDataset]) -> None:
    planned = names(TrainSettings(folds=2, seeds=(2, 0, 2)), data)
    assert list(planned) == ["pooled-fold0", "pooled-fold1", "pooled-fold0-seed2", "pooled-fold1-seed2"]
    assert len(set(planned.values())) == 4


def test_a_run_has_the_same_name_with_seed_and_seeds(data: list[PreparedDataset]) -> None:
    several = names(TrainSettings(folds=2, seeds=(0, 1)), data)
    assert names(TrainSettings(folds=2), data).items() <= several.items()
    assert names(TrainSettings(folds=2, seed=1), data).items() <= several.items()
    assert not {*names(TrainSettings(folds=2, split_seed=1), data).values()} & {*several.values()}


def test_settings_of_a_run_have_its_seed_only(data: list[PreparedDataset]) -> None:
    settings = TrainSettings(folds=2, seeds=(4, 5), split_seed=7)
    plans = study_plan.plan_runs(settings, data)
    own = [study_plan.settings_of_run(settings, plan) for plan in plans]
    assert [(run.seed, run.seeds, run.split_seed) for run in own] == [(4, (), 7)] * 2 + [(5, (), 7)] * 2
    assert {plan.split_seed for plan in plans} == {7}


def test_earlier_seeds_stay_in_the_results(data: list[PreparedDataset]) -> None:
    earlier = TrainSettings(folds=2, seeds=(0, 1))
    matching = study_plan.matching_runs(TrainSettings(folds=2, seed=2), data, (0, 1))
    assert {*names(earlier, data).values(), *names(TrainSettings(folds=2, seed=2), data).values()} <= matching
    assert names(earlier, data)["pooled-fold0-seed1"] not in study_plan.matching_runs(TrainSettings(folds=2), data)
