"""Settings of train: rules between fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import (
    AugmentSettings,
    ComputeSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    Settings,
    TrainSettings,
)


def test_error_names_the_remedy() -> None:
    with pytest.raises(ValidationError, match="--only-folds 9 of 4 folds: pass 0 to 3"):
        TrainSettings(folds=4, only_folds=(9,))


def test_batch_of_one_needs_frozen_batch_norm() -> None:
    with pytest.raises(ValidationError, match="batch norm has no variance over one image: pass 2 or more, or --comp"):
        TrainSettings(loader=LoaderSettings(batch_size=1))
    frozen = ComputeSettings(batch_norm="frozen")
    assert TrainSettings(loader=LoaderSettings(batch_size=1), compute=frozen).min_batch_size == 1
    assert TrainSettings().min_batch_size == 2


def test_validation_fold_needs_three_folds() -> None:
    assert [TrainSettings(**values).validates for values in ({}, {"patience": 1}, {"choose_threshold": True})] == [
        False,
        True,
        True,
    ]
    with pytest.raises(
        ValidationError, match="--folds 2: one is held out, one for validation, none is left to train on: pass 3"
    ):
        TrainSettings(folds=2, patience=1)


def test_dry_run_is_not_saved_with_the_settings() -> None:
    assert "dry_run" not in TrainSettings(dry_run=True).model_dump()
    assert "dry_run" not in TrainSettings(dry_run=True).model_dump_json()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (OptimSettings, {"lr": 0.0}),
        (OptimSettings, {"lr": float("nan")}),
        (OptimSettings, {"weight_decay": -1e-4}),
        (OptimSettings, {"ema_decay": 1.0}),
        (OptimSettings, {"clip_norm": -0.1}),
        (OptimSettings, {"accumulate_steps": 0}),
        (OptimSettings, {"warmup": 1.1}),
        (OptimSettings, {"schedule": "linear"}),
        (ComputeSettings, {"precision": "fp8"}),
        (ComputeSettings, {"batch_norm": "group"}),
        (ModelSettings, {"dropout": 1.0}),
        (LossSettings, {"bce": 0.0, "dice": 0.0}),
        (LossSettings, {"bce": -1.0}),
        (AugmentSettings, {"scale": 1.0}),
        (AugmentSettings, {"flip": 1.1}),
        (LoaderSettings, {"batch_size": 0}),
        (LoaderSettings, {"processes": -1}),
        (TrainSettings, {"folds": 1}),
        (TrainSettings, {"folds": 5, "only_folds": (0, 5)}),
        (TrainSettings, {"only_folds": (-1,)}),
        (TrainSettings, {"protocols": ()}),
        (TrainSettings, {"protocols": ("leave-one-out",)}),
        (TrainSettings, {"seed": -1}),
        (TrainSettings, {"threshold": 1.0}),
        (TrainSettings, {"epochs": 0}),
        (TrainSettings, {"workers_per_run": 0}),
        (TrainSettings, {"runs_at_once": -1}),
        (TrainSettings, {"save_steps": 0}),
        (TrainSettings, {"patience": -1}),
        (TrainSettings, {"loader": {"batch_size": 1}}),
        (TrainSettings, {"loader": {"batch_size": 1}, "compute": {"batch_norm": "local"}}),
        (TrainSettings, {"folds": 2, "patience": 1}),
        (TrainSettings, {"folds": 2, "choose_threshold": True}),
    ],
)
def test_invalid_values_are_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (LossSettings, {"bce": 0.0}),
        (LossSettings, {"dice": 0.0}),
        (LoaderSettings, {"batch_size": 1, "cache_mib": 0}),
        (TrainSettings, {"folds": 2, "only_folds": (0, 1)}),
        (TrainSettings, {"folds": 3, "patience": 1, "choose_threshold": True}),
    ],
)
def test_limits_are_accepted(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = kind.model_validate(values)
    assert {name: getattr(settings, name) for name in values} == values
