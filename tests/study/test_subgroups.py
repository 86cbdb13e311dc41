"""Dice by finding, age group and sex."""

import io
from typing import Any

import pytest
from rich.console import Console

from lungseg.study import cross_dataset, result_text
from lungseg.study.subgroups import MIN_IMAGES
from lungseg.study.tested_images import study_rows

Row = dict[str, Any]


def row_of(image: str, dice: float | None, class_name: str = "lung") -> Row:
    metrics = dict.fromkeys(("dice", "iou", "pixel_accuracy", "sensitivity", "precision"), dice)
    ids = {"run": "run", "image_id": image, "dataset": "north", "patient_id": "", "group": None, "class": class_name}
    return {**ids, "role": "cross", **metrics, **dict.fromkeys(("hd95_px", "assd_px"), 2.0)}


def study(known: dict[str, Row], dices: dict[str, float | None], classes: tuple[str, ...] = ("lung",)) -> Any:
    rows = [row_of(image, dice, name) for name in classes for image, dice in dices.items()]
    named = {("north", image): {"finding": None, "age_group": None, "sex": None} | row for image, row in known.items()}
    return cross_dataset.summarise(study_rows(rows, "source-to-source", ("south",), 0, 0, named))


def halves(**values: tuple[str, str]) -> tuple[dict[str, Row], dict[str, float | None]]:
    """Twelve images of each of two subgroups: Dice 0.9 and 0.7."""
    images = [f"{side}{number}" for side in (0, 1) for number in range(MIN_IMAGES + 2)]
    known = {image: {name: pair[int(image[0])] for name, pair in values.items()} for image in images}
    return known, {image: (0.9, 0.7)[int(image[0])] for image in images}


def test_means_of_subgroups_are_those_of_their_images() -> None:
    known, dices = halves(finding=("normal", "tuberculosis"), sex=("F", "M"))
    dices["00"] = None  # without a Dice, as where prediction and reference are empty
    groups = study(known, dices).subgroups
    assert [(group.label, group.dice.images, round(group.dice.mean, 9)) for group in groups] == [
        ("finding: normal", MIN_IMAGES + 1, 0.9),
        ("finding: tuberculosis", MIN_IMAGES + 2, 0.7),
        ("sex: F", MIN_IMAGES + 1, 0.9),
        ("sex: M", MIN_IMAGES + 2, 0.7),
    ]
    assert groups[0].as_json() | {"dice": 0.9, "dice_low": 0.9, "dice_high": 0.9} == {
        **{"protocol": "source-to-source", "train_on": "south", "dataset": "north", "role": "cross"},
        **{"attribute": "finding", "value": "normal", "images": MIN_IMAGES + 1, "patients": MIN_IMAGES + 1},
        **{"dice": 0.9, "dice_low": 0.9, "dice_high": 0.9, "dice_basis": "patients"},
    }


@pytest.mark.parametrize(
    "values",
    [{}, {"finding": ("normal", "normal")}, {"finding": ("normal", "")}],
    ids=["unknown", "one subgroup", "half unknown"],
)
def test_a_single_subgroup_is_no_table(values: dict[str, tuple[str, str]]) -> None:
    results = study(*halves(**values))
    assert results.subgroups == ()
    output = io.StringIO()
    result_text.print_results(results, Console(file=output, width=120))
    assert "by finding" not in output.getvalue()


def test_small_subgroups_are_left_out() -> None:
    known, dices = halves(finding=("normal", "tuberculosis"))
    for number in range(3):
        known[f"1{number}"] = {"finding": f"rare {number}"}
    assert study(known, dices).subgroups == ()  # nine with tuberculosis are left


def test_each_class_has_its_own_subgroups() -> None:
    known, dices = halves(age_group=("20-39", "60-79"))
    results = study(known, dices, ("heart", "lung"))
    assert [(group.class_name, group.value) for group in results.subgroups] == [
        *(("heart", "20-39"), ("heart", "60-79"), ("lung", "20-39"), ("lung", "60-79")),
    ]
    output = io.StringIO()
    result_text.print_results(results, Console(file=output, width=140))
    (line,) = [text for text in output.getvalue().splitlines() if "heart" in text and "age: 60-79" in text]
    assert line.split()[-3:] == ["0.700", "[0.700,", "0.700]"]


def test_long_findings_leave_all_figures_on_a_narrow_terminal() -> None:
    text = "old tuberculosis of both upper lobes with scars, " * 3
    results, output = study(*halves(finding=("normal", text))), io.StringIO()
    result_text.print_results(results, Console(file=output, width=100))
    lines = output.getvalue().splitlines()
    assert [line for line in lines if "north" in line and line.rstrip().endswith("12      0.700 [0.700, 0.700]")]
