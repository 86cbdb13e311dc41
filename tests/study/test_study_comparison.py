"""Comparison of two studies with known values."""

import json

import pytest

from lungseg.study import cross_dataset, study_comparison
from tests.study.test_cross_dataset import FROM_A, A, B, Row, rows_of, source

OWN = {"p1-1": 0.9, "p1-2": 0.7, "p2-1": 0.8}
CROSS = {"x": 0.5, "y": 0.7}


def a_study(own: dict[str, float | None], cross: dict[str, float | None], run: str = "run") -> list[Row]:
    return source(A, 0, [*rows_of(A, "held-out", own, run), *rows_of(B, "cross", cross, run)])


def test_difference_uses_the_shared_images() -> None:
    other = a_study({"p1-1": 0.8, "p2-1": 0.8, "p3-1": 0.1}, {"x": 0.6, "y": 0.9})
    held_out, cross = study_comparison.compare(a_study(dict(OWN), dict(CROSS)), "other", other)
    assert (held_out.other_study, held_out.run_group, held_out.dataset, held_out.role) == (
        "other",
        FROM_A,
        A,
        "held-out",
    )
    assert (held_out.paired.images, held_out.paired.patients) == (2, 2)
    assert (held_out.dice, held_out.other_dice) == pytest.approx((0.85, 0.8))
    assert held_out.paired.difference == pytest.approx(0.05)
    assert (cross.dataset, cross.role, cross.paired.images) == (B, "cross", 2)
    assert cross.paired.difference == pytest.approx(-0.15)


def test_image_of_several_runs_counts_once() -> None:
    other = [*a_study({}, {"x": 0.2}), *source(A, 1, rows_of(B, "cross", {"x": 0.6}))]
    own = [*a_study({}, dict(CROSS)), *source(A, 1, rows_of(B, "cross", {"x": 0.9}))]
    (cross,) = study_comparison.compare(own, "other", other)
    assert (cross.paired.images, cross.dice, cross.other_dice) == (1, pytest.approx(0.7), pytest.approx(0.4))
    # A fold that only one of the two has trained would be another model.
    (cross,) = study_comparison.compare(a_study({}, dict(CROSS)), "other", other)
    assert (cross.dice, cross.other_dice) == (0.5, 0.2)


@pytest.mark.parametrize(
    "other",
    [
        [],
        source(B, 0, rows_of(B, "cross", {"x": 0.5})),
        source(A, 0, rows_of(B, "held-out", {"x": 0.5})),
        source(A, 0, rows_of(B, "cross", {"z": 0.5})),
        source(A, 0, rows_of(B, "cross", {"x": None})),
        cross_dataset.study_rows(rows_of(B, "cross", {"x": 0.5}), "leave-one-dataset-out", (A,), 0),
    ],
    ids=["nothing", "trained on another", "another role", "another image", "no Dice", "another protocol"],
)
def test_only_matching_rows_are_compared(other: list[Row]) -> None:
    assert study_comparison.compare(a_study({}, dict(CROSS)), "other", other) == []


def test_json_is_flat() -> None:
    (comparison,) = study_comparison.compare(a_study({}, dict(CROSS)), "other", a_study({}, dict(CROSS)))
    values = json.loads(json.dumps(comparison.as_json()))
    assert values["difference"] == 0.0
    assert (values["low"], values["high"], values["p"]) == (0.0, 0.0, 1.0)
    assert (values["other_study"], values["train_on"], values["protocol"]) == ("other", A, "source-to-source")
    assert not [name for name, value in values.items() if isinstance(value, dict | list)]
