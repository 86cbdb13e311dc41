"""Settings of lungseg infer: invalid values, and how many images may fail."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from lungseg.config import InferSettings, PostprocessSettings

numbers = st.integers(0, 10**6)


@pytest.mark.parametrize("value", ["", "%", "1.5", "-1", "-1%", "1 %", "1%%", "% 1", "a", ".5%", "1.%", "1e3", "5\n"])
def test_max_failed_must_be_a_percentage_or_number(value: str) -> None:
    with pytest.raises(
        ValidationError, match=r"--max-failed .*: expected a percentage such as 1% or a number such as 500"
    ):
        InferSettings(max_failed=value)


@pytest.mark.parametrize(
    ("budget", "images", "allowed"),
    [
        ("100%", 7, 7),
        ("0%", 7, 0),
        ("1%", 99, 0),
        ("1%", 100, 1),
        ("1%", 299, 2),
        ("0.1%", 5000, 5),
        ("32.48%", 625, 203),  # which floating point makes 202
        ("0", 1000, 0),
        ("500", 100000, 500),
        ("500", 3, 500),
        ("10%", 0, 0),
    ],
)
def test_allowed_failures_of_percentages_and_numbers(budget: str, images: int, allowed: int) -> None:
    assert InferSettings(max_failed=budget).allowed_failures(images) == allowed


@given(st.integers(0, 10000), numbers)
def test_allowed_failures_are_rounded_down(hundredths: int, images: int) -> None:
    allowed = InferSettings(max_failed=f"{hundredths / 100:.2f}%").allowed_failures(images)
    share = images * Fraction(hundredths, 10000)
    assert allowed <= share < allowed + 1


@given(numbers)
def test_every_image_may_fail_by_default(images: int) -> None:
    assert InferSettings().allowed_failures(images) == images


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"part_size": 0},
        {"workers": -1},
        {"device": "tpu"},
        {"precision": "int8"},
        {"tta": "rotate"},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"postprocess": "lungs"},
        {"postprocess": {"specks": -0.1}},
        {"postprocess": {"specks": 1.1}},
        {"postprocess": {"smooth": 0.06}},
        {"postprocess": {"border": True}},
        {"checkpoint": "one"},
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InferSettings.model_validate(values)


def test_threshold_defaults_to_that_of_the_models() -> None:
    assert InferSettings().threshold is None
    assert InferSettings(threshold=0.4).threshold == 0.4


def test_lungs_and_holes_are_postprocessed_by_default() -> None:
    settings = PostprocessSettings().model_dump()
    assert settings == {"crf": False, "specks": 0.0, "lungs": True, "holes": True, "smooth": 0.0}
