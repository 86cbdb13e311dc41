"""Settings of lungseg prepare: rules between fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import PrepareSettings, Settings


def test_sections_are_validated() -> None:
    with pytest.raises(ValidationError, match=r"preprocess\.size"):
        PrepareSettings.model_validate({"preprocess": {"size": 65}})


def test_dataset_name_is_one_folder_name() -> None:
    for name in ("a/b", "..", "a b", "é", "a\n"):
        with pytest.raises(ValidationError, match=r"--dataset .*: expected A-Z, a-z, 0-9, _ and - only"):
            PrepareSettings(dataset=name)
    assert PrepareSettings(dataset="A_b-9").dataset == "A_b-9"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PrepareSettings, {"source": "a", "images": "b"}),
        (PrepareSettings, {"source": "a", "masks": "b"}),
        (PrepareSettings, {"masks": "b"}),
        (PrepareSettings, {"source": "a", "columns": {"image": "b"}}),
        (PrepareSettings, {"images_per_shard": 0}),
    ],
)
def test_invalid_values_are_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PrepareSettings, {"images": "a", "masks": "b"}),
        (PrepareSettings, {"images": "a"}),
    ],
)
def test_limits_are_accepted(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = kind.model_validate(values)
    assert {name: getattr(settings, name) for name in values} == values
