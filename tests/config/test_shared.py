"""All settings: frozen, documented, no unknown names; and preprocessing."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg import config
from lungseg.config import PreprocessSettings, Settings

NAMED = [getattr(config, name) for name in config.__all__]  # imported on first use
ALL = [kind for kind in NAMED if isinstance(kind, type) and issubclass(kind, Settings)]
assert len(ALL) > 15, "the tests below need the settings of all jobs"


@pytest.mark.parametrize("kind", ALL)
def test_defaults_survive_json(kind: type[Settings]) -> None:
    settings = kind()
    assert kind.model_validate_json(settings.model_dump_json()) == settings
    assert hash(settings) == hash(kind())


@pytest.mark.parametrize("kind", ALL)
def test_unknown_settings_are_refused(kind: type[Settings]) -> None:
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
        (PreprocessSettings, {"landmarks": (1.0, 2.0)}),
    ],
)
def test_invalid_values_are_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PreprocessSettings, {"size": 64}),
        (PreprocessSettings, {"size": 4096}),
        (PreprocessSettings, {"histogram": "match", "landmarks": (1.0, 2.0)}),
    ],
)
def test_limits_are_accepted(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = kind.model_validate(values)
    assert {name: getattr(settings, name) for name in values} == values


def test_different_preprocessing_is_reported_as_options() -> None:
    plain, other = PreprocessSettings(), PreprocessSettings(size=64, classes=("lung", "heart"))
    assert plain.differences(PreprocessSettings()) == ""
    assert other.differences(plain) == (
        "found --preprocess.size 64, expected 512; found --preprocess.classes lung heart, expected lung"
    )
    assert "--preprocess.landmarks (none), expected 1.0 2.0" in plain.differences(
        PreprocessSettings(histogram="match", landmarks=(1.0, 2.0))
    )
