"""Runs of a study: one per protocol, datasets, fold and seed, each with its own settings and name."""

from pathlib import Path

import pytest

from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.fold_table import write_fold_files
from lungseg.errors import SettingsError
from lungseg.study import study_plan
from lungseg.training.study_data import open_training_data
from tests.fold_rows import split


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


def with_table(prepared: Path, path: Path, changes: dict[str, int]) -> tuple[TrainSettings, list[PreparedDataset]]:
    """Return settings and data with folds from a table: images with an odd number are in fold 1."""
    folders = [str(prepared / "north"), str(prepared / "south")]
    rows = [row for part in open_training_data(folders) for row in part.index.to_pylist()]
    folds = {row["image_id"]: int(row["image_id"][-1]) % 2 for row in rows} | changes
    path.write_text("image_id,fold\n" + "".join(f"{name},{fold}\n" for name, fold in folds.items()))
    settings = TrainSettings(folds=2, folds_from=str(path))
    return settings, open_training_data(folders, settings)


def test_a_table_of_folds_decides_what_is_held_out(prepared: Path, tmp_path: Path) -> None:
    settings, data = with_table(prepared, tmp_path / "f.csv", {"north_01": -1})
    plans = study_plan.plan_runs(settings, data)
    assert study_plan.require_feasible(settings, study_plan.index_of(settings, data), plans) == [3, 6]
    rows = [row for part in data for row in part.index.to_pylist()]
    held_out = [rows[i]["image_id"] for i in split(rows, plans[1]).held_out]
    assert held_out == ["north_03", "south_01"]


def test_a_table_that_separates_linked_images_is_refused(prepared: Path, tmp_path: Path) -> None:
    settings, data = with_table(prepared, tmp_path / "f.csv", {})
    plans = study_plan.plan_runs(settings, data)
    linked, apart = (
        study_plan.index_of(settings, data, [("north/north_00", f"south/south_{number}")]) for number in ("02", "01")
    )
    study_plan.require_feasible(settings, linked, plans)
    with pytest.raises(SettingsError, match="north/north_00 in fold 0 and south/south_01 in fold 1 show one patient"):
        study_plan.require_feasible(settings, apart, plans)


def test_another_table_of_folds_names_another_run(prepared: Path, tmp_path: Path) -> None:
    tables = (("a.csv", {}), ("copy.csv", {}), ("c.csv", {"north_01": -1}))
    first, copied, other = (names(*with_table(prepared, tmp_path / name, changes)) for name, changes in tables)
    assert first == copied
    assert not {*first.values()} & {*other.values()}


def test_the_folds_of_a_study_can_be_used_again(prepared: Path, tmp_path: Path) -> None:
    folders = [str(prepared / "north"), str(prepared / "south")]
    settings, data = TrainSettings(folds=2, split_seed=3), open_training_data(folders)
    write_fold_files(str(tmp_path), study_plan.index_of(settings, data).rows)
    again = TrainSettings(folds=2, folds_from=str(tmp_path / "folds.csv"))
    copied = open_training_data(folders, again)
    for plan, copy in zip(study_plan.plan_runs(settings, data), study_plan.plan_runs(again, copied), strict=True):
        splits = [
            split([row for part in own for row in part.index.to_pylist()], own_plan)
            for own, own_plan in ((data, plan), (copied, copy))
        ]
        assert splits[0] == splits[1]
