"""Names of classes: sides, partners, and what columns, folders and labels are named after."""

import pytest

from lungseg.config import PreprocessSettings
from lungseg.config.class_names import (
    annotated_by,
    mirrored_order,
    partner_of,
    requested_class,
    similar_names,
    without_partner,
)

CLASSES = ("right_lung", "left_lung", "heart", "opacity")


def test_a_mirror_exchanges_left_and_right() -> None:
    assert mirrored_order(CLASSES) == [1, 0, 2, 3]
    assert (partner_of("left_upper_lobe"), partner_of("leftover")) == ("right_upper_lobe", "leftover")


@pytest.mark.parametrize(
    ("classes", "missing"),
    [
        (CLASSES, []),
        (("lung",), []),
        (("lung", "leftover"), []),
        (("left_lung", "clavicle_right"), ["left_lung", "clavicle_right"]),
    ],
)
def test_sided_classes_need_a_partner(classes: tuple[str, ...], missing: list[str]) -> None:
    assert without_partner(classes) == missing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right Lung", "right_lung"),
        ("left-lung masks", "left_lung"),
        ("HEART_mask", "heart"),
        ("hearts", "heart"),
        ("opacities", "opacity"),
        ("lung", ""),
        ("lung_right", ""),
        ("image", ""),
        ("", ""),
    ],
)
def test_names_are_recognised_in_any_spelling(text: str, expected: str) -> None:
    assert requested_class(text, CLASSES) == expected


@pytest.mark.parametrize("names", [("lung", "lungs"), ("left_lung", "lung_left"), ("opacity", "opacities")])
def test_one_class_under_two_names_is_refused(names: tuple[str, str]) -> None:
    assert similar_names(names) == names
    with pytest.raises(ValueError, match="look like one class: name it once"):
        PreprocessSettings(classes=names)


def test_different_classes_are_not_similar() -> None:
    assert similar_names((*CLASSES, "lung", "left_clavicle", "right_clavicle")) is None


def test_lungs_and_their_sides_annotate_each_other() -> None:
    assert annotated_by(("lung",), CLASSES) == ("right_lung", "left_lung")
    assert annotated_by(("left_lung", "right_lung", "opacity"), ("lung", "heart", "opacity")) == ("lung", "opacity")
    assert annotated_by((), CLASSES) == ()
