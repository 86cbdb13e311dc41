"""Settings of prepare: rules between fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import PrepareSettings, Settings


def test_a_section_is_checked_when_it_is_part_of_a_job() -> None:
    with pytest.raises(ValidationError, match=r"preprocess\.size"):
        PrepareSettings.model_validate({"preprocess": {"size": 65}})


def test_a_data_sets_name_is_one_folder() -> None:
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
def test_what_cannot_be_is_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PrepareSettings, {"images": "a", "masks": "b"}),
        (PrepareSettings, {"images": "a"}),
    ],
)
def test_what_stands_on_the_edge_is_taken(kind: type[Settings], values: dict[str, Any]) -> None:
    settings = kind.model_validate(values)
    assert {name: getattr(settings, name) for name in values} == values
