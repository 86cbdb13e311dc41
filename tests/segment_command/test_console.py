"""The last lines of lungseg segment."""

import pytest

from lungseg.arrays import Row
from lungseg.inference.doubt import NO_UNUSUAL_PLACE
from lungseg.segment_command.console import closing_lines, print_result
from lungseg.segment_command.outputs import FILE_COLUMNS


def named_row(name: str, *flags: str) -> tuple[str, Row]:
    return name, {
        **dict.fromkeys(FILE_COLUMNS),
        "status": "ok",
        "flags": list(flags),
        "doubt": 0.1,
        "seen_in_training": False,
    }


@pytest.mark.parametrize(
    ("flagged", "others", "lines"),
    [
        (0, 1, []),
        (0, 2, ["look first at: b0 (highest doubt; no flag questions a mask)"]),
        (0, 9, ["look first at: b0, b1, b2 (highest doubt; no flag questions a mask)"]),
        (1, 1, ["look first at: a0 (flagged)"]),
        (7, 4, ["look first at: a0, a1, a2, a3, a4 and 2 more (flagged)", "then at: b0, b1 (highest doubt)"]),
    ],
)
def test_the_images_to_look_at_first_are_named(flagged: int, others: int, lines: list[str]) -> None:
    rows = [named_row(f"a{number}", "rotated") for number in range(flagged)]
    rows += [named_row(f"b{number}") for number in range(others)]
    assert closing_lines(rows, "out", ())[1:-1] == lines


def test_images_of_the_training_are_counted() -> None:
    rows = [named_row("a"), named_row("b")]
    rows[0][1]["seen_in_training"] = True
    line = closing_lines(rows, "out", ())[-2]
    assert line == "the model was trained on 1 of 2 images: new images may get worse masks"
    rows[0][1]["seen_in_training"] = False
    assert "trained on" not in " ".join(closing_lines(rows, "out", ()))


def test_the_picture_of_a_single_image_is_named() -> None:
    name, row = named_row("a")
    row["overlay_file"] = "overlays/a.png"
    assert closing_lines([(name, row)], "out", ("overlays",))[1:-1] == ["picture: out/overlays/a.png"]
    assert closing_lines([(name, row), named_row("b")], "out", ())[1:-1] == [
        "look first at: a (highest doubt; no flag questions a mask)"
    ]


def test_the_table_says_flags_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"doubt": 0.03, "doubt_reason": NO_UNUSUAL_PLACE, "message": "", "source_uri": "a", "codes": []}
    areas = {f"{side}_lung_{unit}": None for side in ("right", "left") for unit in ("px", "cm2")}
    print_result([{**named_row("a", "spacing_unusable")[1], **values, **areas}], "out", ())
    assert "0.030  no cm2: pixel size unusable" in capsys.readouterr().out


def test_flags_are_named_where_there_is_no_reason(capsys: pytest.CaptureFixture[str]) -> None:
    heart = {"class": "heart", "area_px": 30, "components": 1, "mean_probability": 0.9, "doubt": 0.1}
    metrics = dict.fromkeys(("dice", "iou", "hd95_px", "assd_px"))
    values = {"doubt": None, "doubt_reason": None, "message": "", "source_uri": "a", "codes": [], "spacing_mm": None}
    row = {**named_row("a", "rotated")[1], **values, "classes": [heart | metrics]}  # a model without lungs
    print_result([row], "out", (), ("heart",))
    assert "30 px         rotated" in capsys.readouterr().out


def test_a_flag_that_does_not_question_the_mask_is_not_counted() -> None:
    assert closing_lines([named_row("a", "view_unknown"), named_row("b", "rotated")], "out", ())[0] == (
        "2 of 2 images segmented, 1 flagged"
    )
