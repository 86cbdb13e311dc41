"""Comparison of two studies with known values."""

import json

import pytest

from lungseg.metrics.paired_tests import holm
from lungseg.study import result_text, study_comparison
from lungseg.study.study_comparison import StudyComparisons
from lungseg.study.tested_images import study_rows
from tests.study.test_cross_dataset import FROM_A, A, B, Row, rows_of, source, with_seeds

OWN = {"p1-1": 0.9, "p1-2": 0.7, "p2-1": 0.8}
CROSS = {"x": 0.5, "y": 0.7}


def a_study(own: dict[str, float | None], cross: dict[str, float | None], run: str = "run") -> list[Row]:
    return source(A, 0, [*rows_of(A, "held-out", own, run), *rows_of(B, "cross", cross, run)])


def test_difference_uses_the_shared_images() -> None:
    other = a_study({"p1-1": 0.8, "p2-1": 0.8, "p3-1": 0.1}, {"x": 0.6, "y": 0.9})
    held_out, cross = study_comparison.compare(a_study(dict(OWN), dict(CROSS)), "other", other).pairs
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
    (cross,) = study_comparison.compare(own, "other", other).pairs
    assert (cross.paired.images, cross.dice, cross.other_dice) == (1, pytest.approx(0.7), pytest.approx(0.4))
    # A fold that only one of the two has trained would be another model.
    (cross,) = study_comparison.compare(a_study({}, dict(CROSS)), "other", other).pairs
    assert (cross.dice, cross.other_dice) == (0.5, 0.2)


@pytest.mark.parametrize(
    "other",
    [
        [],
        source(B, 0, rows_of(B, "cross", {"x": 0.5})),
        source(A, 0, rows_of(B, "held-out", {"x": 0.5})),
        source(A, 0, rows_of(B, "cross", {"z": 0.5})),
        source(A, 0, rows_of(B, "cross", {"x": None})),
        study_rows(rows_of(B, "cross", {"x": 0.5}), "leave-one-dataset-out", (A,), 0),
    ],
    ids=["nothing", "trained on another", "another role", "another image", "no Dice", "another protocol"],
)
def test_only_matching_rows_are_compared(other: list[Row]) -> None:
    assert study_comparison.compare(a_study({}, dict(CROSS)), "other", other) == StudyComparisons()


def test_json_is_flat() -> None:
    (comparison,) = study_comparison.compare(a_study({}, dict(CROSS)), "other", a_study({}, dict(CROSS))).pairs
    values = json.loads(json.dumps(comparison.as_json()))
    assert values["difference"] == 0.0
    assert (values["low"], values["high"], values["p"]) == (0.0, 0.0, 1.0)
    assert (values["other_study"], values["train_on"], values["protocol"]) == ("other", A, "source-to-source")
    assert not [name for name, value in values.items() if isinstance(value, dict | list)]


def test_seeds_need_not_be_the_same() -> None:
    shifts = {0: -0.01, 1: 0.0, 2: 0.01}
    own, other = with_seeds(shifts), with_seeds({seed + 7: shift for seed, shift in shifts.items()})
    result = study_comparison.compare(own, "other", [*other, *with_seeds({9: 0.0}, folds=3)[-20:]])
    held_out, cross = result.pairs
    assert {held_out.paired.basis, cross.paired.basis} == {"patients and trainings"}
    assert [spread.seeds for spread in held_out.spreads if spread] == [3, 3]
    assert "3 seeds: " in str(held_out)
    assert "IoU difference" in str(held_out)
    assert "HD95 px difference" in str(held_out)


def test_one_seed_on_a_side_is_tested_over_patients() -> None:
    own, other = with_seeds({0: -0.01, 1: 0.0, 2: 0.01}), with_seeds({0: 0.0})
    pair = study_comparison.compare(own, "other", other).pairs[0]
    assert (pair.paired.basis, pair.spreads[1]) == ("patients", None)
    assert "other 1 seed" in str(pair)


def test_change_of_the_gap_is_compared() -> None:
    own = with_seeds({0: 0.0, 1: 0.001, 2: -0.001}, patients=30)
    other = [
        {**row, "dice": row["dice"] + (0.05 if row["role"] == "cross" else 0.0)}
        for row in with_seeds({3: 0.0, 4: 0.001, 5: -0.001}, patients=30)
    ]
    (gap,) = study_comparison.compare(own, "other", other).gaps
    assert gap.gap - gap.other_gap == pytest.approx(gap.change.difference)
    assert gap.change.difference == pytest.approx(0.05, abs=0.005)
    assert gap.change.basis == "patients and trainings"
    assert gap.change.p is not None
    assert gap.change.p < 1e-4
    assert (gap.as_json()["gap_seeds"], gap.as_json()["other_gap_seeds"]) == (3, 3)
    (one,) = study_comparison.compare(with_seeds({0: 0.0}), "other", with_seeds({1: 0.0})).gaps
    assert (one.change.basis, one.change.p is None) == ("patients", False)


def test_p_is_corrected_over_all_studies_compared() -> None:
    own = with_seeds({0: 0.0})
    others = [with_seeds({0: shift}) for shift in (0.001, 0.002, 0.05)]
    single = [study_comparison.compare(own, f"other{i}", rows) for i, rows in enumerate(others)]
    assert {pair.paired.p_holm for result in single for pair in result.pairs} == {None}
    together = study_comparison.joined(single)
    assert [pair.paired.p_holm for pair in together.pairs] == holm([pair.paired.p for pair in together.pairs])
    assert [gap.change.p_holm for gap in together.gaps] == holm([gap.change.p for gap in together.gaps])
    assert "(Holm " in str(together.pairs[0])


def test_no_p_and_disagreement_are_explained() -> None:
    few = study_comparison.compare(a_study(dict(OWN), {}), "other", a_study({"p1-1": 0.8, "p2-1": 0.7}, {}))
    assert "no p: 2 of 2 patients differ, a test needs 6" in str(few.pairs[0])
    better = {f"p{i}-1": 0.901 for i in range(30)} | {"p30-1": 0.1}
    skewed = study_comparison.compare(a_study(dict(better), {}), "other", a_study(dict.fromkeys(better, 0.9), {}))
    assert result_text.DISAGREEMENT in str(skewed.pairs[0])


def test_images_of_other_folds_are_counted() -> None:
    own = [*source(A, 0, rows_of(A, "held-out", {"x": 0.5})), *source(A, 1, rows_of(A, "held-out", {"y": 0.5}))]
    swapped = [*source(A, 0, rows_of(A, "held-out", {"y": 0.5})), *source(A, 1, rows_of(A, "held-out", {"x": 0.5}))]
    assert study_comparison.count_moved(own, own) == 0
    assert study_comparison.count_moved(own, swapped) == 4
    assert study_comparison.count_moved(own[:1], swapped[1:]) == 0


def test_classes_are_compared_with_themselves() -> None:
    study = a_study({f"p{number}": 0.8 for number in range(8)}, {})
    better = [{**row, "dice": 0.9} for row in study]
    own = [{**row, "class": name} for name in ("lung", "heart") for row in study]
    other = [{**row, "class": "heart"} for row in better]
    (pair,) = study_comparison.compare(own, "other", other).pairs
    assert (pair.class_name, pair.paired.difference) == ("heart", pytest.approx(-0.1))
    assert pair.as_json()["class"] == "heart"
    assert "of a, heart: " in str(pair)
