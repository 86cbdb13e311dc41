"""The name of a run: which settings and data change it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lungseg.config import (
    AugmentSettings,
    ComputeSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.folds import RunPlan
from lungseg.errors import InputError
from lungseg.training import run
from lungseg.training.run import name_run
from lungseg.training.study_data import open_training_data

SETTINGS = TrainSettings(
    folds=5,
    split_seed=3,
    seed=3,
    epochs=3,
    model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
    augment=AugmentSettings(flip=0.5),
    loader=LoaderSettings(batch_size=2, processes=0),
)
PLAN = RunPlan("source-to-source", ("north",), fold=0, folds=5, split_seed=3)


def changed(**changes: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=changes)


@pytest.fixture(scope="module")
def data(prepared: Path) -> list[PreparedDataset]:
    return open_training_data([str(prepared / "north"), str(prepared / "south")])


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 4},
        {"seed": 4},
        {"split_seed": 4},
        {"folds": 3},
        {"threshold": 0.4},
        {"workers_per_run": 2},
        {"compute": ComputeSettings(precision="bf16")},
        {"compute": ComputeSettings(threads=7)},
        {"device": "gpu"},
        {"patience": 3},
        {"choose_threshold": True},
        {"model": ModelSettings(encoder="resnet50", weights="none")},
        {"optim": OptimSettings(lr=1e-3)},
        {"loss": LossSettings(dice=0.5)},
        {"augment": AugmentSettings()},
        {"loader": LoaderSettings(batch_size=4, processes=0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_affect_the_result_change_the_name(changes: dict[str, Any], data: list[PreparedDataset]) -> None:
    assert name_run(changed(**changes), PLAN, data) != name_run(SETTINGS, PLAN, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"out": "/elsewhere"},
        {"study": "another"},
        {"wandb": WandbSettings(mode="offline", project="p")},
        {"data": ("/a/moved/folder",)},
        {"only_folds": (0,)},
        {"train_on": ("north",)},
        {"protocols": ("pooled", "source-to-source")},
        {"max_failures": 0},
        {"runs_at_once": 2},
        {"loader": LoaderSettings(batch_size=2, processes=7, cache_mib=1, disk_mib=0)},
        {"phantoms": 9},
        {"seeds": (3, 4)},
        {"dry_run": True},
        {"rerun": True},
        {"strict": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_without_effect_keep_the_run_name(changes: dict[str, Any], data: list[PreparedDataset]) -> None:
    assert name_run(changed(**changes), PLAN, data) == name_run(SETTINGS, PLAN, data)


def test_threads_do_not_define_a_run_on_gpus(data: list[PreparedDataset]) -> None:
    names = [name_run(changed(device="gpu", compute=ComputeSettings(threads=n)), PLAN, data) for n in (2, 7)]
    assert names[0] == names[1]


def test_new_setting_at_its_default_keeps_the_run_name(data: list[PreparedDataset]) -> None:
    class Later(TrainSettings):
        new_setting: int = 5
        """a setting of a later version"""

    later = Later.model_validate(SETTINGS.model_dump())
    assert name_run(later, PLAN, data) == name_run(SETTINGS, PLAN, data)
    assert name_run(later.model_copy(update={"new_setting": 6}), PLAN, data) != name_run(SETTINGS, PLAN, data)


def test_other_code_of_the_method_changes_the_run_name(
    data: list[PreparedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name_run(SETTINGS, PLAN, data)
    monkeypatch.setattr(run, "method_digest", "of a loss, {}".format)
    assert name_run(SETTINGS, PLAN, data) != before


def test_run_names_differ_by_plan_and_data(data: list[PreparedDataset]) -> None:
    plans = [PLAN, replace(PLAN, fold=1), replace(PLAN, train_on=("south",)), replace(PLAN, protocol="pooled")]
    names = [name_run(SETTINGS, plan, data) for plan in plans]
    other = [replace(data[0], digest="0" * 16), data[1]]
    names += [name_run(SETTINGS, PLAN, other), name_run(SETTINGS, PLAN, data[:1])]
    assert len(set(names)) == len(names)
    assert names[0].startswith("from-north-fold0-")
    assert names[3].startswith("pooled-fold0-")


def test_moved_dataset_keeps_the_run_name(data: list[PreparedDataset]) -> None:
    moved = [replace(part, folder="/elsewhere/" + part.name) for part in data]
    assert name_run(SETTINGS, PLAN, moved) == name_run(SETTINGS, PLAN, data)


def test_weights_file_is_identified_by_content(data: list[PreparedDataset], tmp_path: Path) -> None:
    def name(path: Path) -> str:
        return name_run(changed(model=ModelSettings(encoder="resnet18", weights=str(path))), PLAN, data)

    contents = {"one.pth": b"weights", "moved.pth": b"weights", "other.pth": b"others"}
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content)
    assert name(tmp_path / "moved.pth") == name(tmp_path / "one.pth") != name(tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"gone\.pth"):
        name(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    "loader",
    [
        LoaderSettings(batch_size=8),
        LoaderSettings(processes=7),
        LoaderSettings(batch_size=8, processes=7),
    ],
)
def test_the_default_batch_size_may_be_typed(loader: LoaderSettings, data: list[PreparedDataset]) -> None:
    default = name_run(changed(loader=LoaderSettings()), PLAN, data)
    assert name_run(changed(loader=loader), PLAN, data) == default


def test_an_agreeing_batch_size_keeps_the_run_name(data: list[PreparedDataset]) -> None:
    names = [
        name_run(
            changed(loader=LoaderSettings(batch_size=size, global_batch_size=total), workers_per_run=2), PLAN, data
        )
        for size, total in (("auto", 8), (4, 8), ("auto", 12))
    ]
    assert names[0] == names[1] != names[2]
