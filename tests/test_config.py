"""Settings: frozen, unknown names refused, rules between fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg import config
from lungseg.config import (
    AugmentSettings,
    InferSettings,
    LoaderSettings,
    LossSettings,
    OptimSettings,
    PrepareSettings,
    PreprocessSettings,
    ReportSettings,
    Settings,
    TrainSettings,
)

ALL = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Settings)]


@pytest.mark.parametrize("kind", ALL)
def test_every_settings_class_stands_on_its_defaults_and_survives_json(kind: type[Settings]) -> None:
    settings = kind()
    assert kind.model_validate_json(settings.model_dump_json()) == settings
    assert hash(settings) == hash(kind())


@pytest.mark.parametrize("kind", ALL)
def test_an_unknown_setting_is_refused(kind: type[Settings]) -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        kind.model_validate({"learning_rate": 1})


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.model_fields])
def test_settings_are_frozen(kind: type[Settings]) -> None:
    settings = kind()
    name = next(iter(kind.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, getattr(settings, name))


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.model_fields])
def test_every_setting_is_documented(kind: type[Settings]) -> None:
    sections = {name for name, field in kind.model_fields.items() if isinstance(field.default, Settings)}
    missing = [name for name, field in kind.model_fields.items() if not field.description and name not in sections]
    assert missing == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PreprocessSettings, {"size": 48}),
        (PreprocessSettings, {"size": 100}),
        (PreprocessSettings, {"size": 4112}),
        (PreprocessSettings, {"geometry": "stretch"}),
        (OptimSettings, {"lr": 0.0}),
        (OptimSettings, {"lr": float("nan")}),
        (OptimSettings, {"weight_decay": -1e-4}),
        (LossSettings, {"bce": 0.0, "dice": 0.0}),
        (LossSettings, {"bce": -1.0}),
        (AugmentSettings, {"scale": 1.0}),
        (AugmentSettings, {"flip": 1.1}),
        (LoaderSettings, {"batch": 1}),
        (LoaderSettings, {"threads": 0}),
        (PrepareSettings, {"source": "a", "images": "b"}),
        (PrepareSettings, {"source": "a", "masks": "b"}),
        (PrepareSettings, {"masks": "b"}),
        (PrepareSettings, {"images_per_shard": 0}),
        (TrainSettings, {"folds": 1}),
        (TrainSettings, {"folds": 5, "only_folds": (0, 5)}),
        (TrainSettings, {"only_folds": (-1,)}),
        (TrainSettings, {"protocols": ()}),
        (TrainSettings, {"protocols": ("leave-one-out",)}),
        (TrainSettings, {"seed": -1}),
        (TrainSettings, {"threshold": 1.0}),
        (TrainSettings, {"epochs": 0}),
        (TrainSettings, {"workers": 0}),
        (InferSettings, {"part": 0}),
        (InferSettings, {"workers": -1}),
        (InferSettings, {"postprocess": "crf"}),
        (ReportSettings, {"overlays": 101}),
    ],
)
def test_what_cannot_be_is_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PreprocessSettings, {"size": 64}),
        (PreprocessSettings, {"size": 4096}),
        (LossSettings, {"bce": 0.0}),
        (LossSettings, {"dice": 0.0}),
        (LoaderSettings, {"batch": 2, "cache_mib": 0}),
        (PrepareSettings, {"images": "a", "masks": "b"}),
        (PrepareSettings, {"images": "a"}),
        (TrainSettings, {"folds": 2, "only_folds": (0, 1)}),
    ],
)
def test_what_stands_on_the_edge_is_taken(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = kind.model_validate(values)
    assert {name: getattr(settings, name) for name in values} == values


def test_the_sentence_names_the_remedy() -> None:
    with pytest.raises(ValidationError, match="--only-folds 9 of 4 folds: pass 0 to 3"):
        TrainSettings(folds=4, only_folds=(9,))


def test_dry_run_is_not_saved_with_the_settings() -> None:
    assert "dry_run" not in TrainSettings(dry_run=True).model_dump()
    assert "dry_run" not in TrainSettings(dry_run=True).model_dump_json()


def test_a_section_is_checked_when_it_is_part_of_a_job() -> None:
    with pytest.raises(ValidationError, match=r"preprocess\.size"):
        PrepareSettings.model_validate({"preprocess": {"size": 65}})


def test_a_data_sets_name_is_one_folder() -> None:
    with pytest.raises(ValidationError, match="dataset"):
        PrepareSettings(dataset="a/b")
