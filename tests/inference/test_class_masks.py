"""Masks of several classes in one row: each class, and the lungs that two of them make up."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.derived_measures import MEASURES
from lungseg.imaging.geometry import plan_geometry
from lungseg.inference import recompute
from lungseg.inference.comparison import COMPARED
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.inference.rows import make_row, make_row_and_mask, shared_values, stored_thresholds
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Record, table

U8 = NDArray[np.uint8]
Row = dict[str, Any]
CLASSES = ("right_lung", "left_lung", "heart", "opacity")
THRESHOLDS = {"right_lung": 0.5, "left_lung": 0.5, "heart": 0.4, "opacity": 0.6}
SETTINGS = PostprocessSettings()


def box(top: int, bottom: int, left: int, right: int) -> U8:
    mask = np.zeros((64, 64), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def masks() -> dict[str, U8]:
    opacity = box(20, 24, 10, 14) | box(30, 36, 44, 50)
    return {
        "right_lung": box(15, 50, 8, 24),
        "left_lung": box(15, 50, 40, 56),
        "heart": box(30, 50, 22, 42),
        "opacity": opacity,
    }


def opened(references: dict[str, U8] | None = None) -> OpenedImage:
    record = Record("a", "north", "/a.png", ("/h.png", "/l.png"), ("heart", "lung"), "p", height=64, width=64)
    geometry = plan_geometry(64, 64, PreprocessSettings(size=64))
    encoded = {name: codecs.encode_rle(mask) for name, mask in (references or {}).items()}
    return OpenedImage(record, np.zeros((64, 64), np.uint8), geometry, encoded)


def prediction(drawn: dict[str, U8]) -> Prediction:
    return Prediction(np.stack([np.where(mask == 1, 0.9, 0.1) for mask in drawn.values()]).astype(np.float32), 1, False)


def row_of(drawn: dict[str, U8], references: dict[str, U8] | None = None, **changes: float) -> Row:
    thresholds = {name: changes.get(name, THRESHOLDS[name]) for name in drawn}
    return make_row(opened(references), prediction(drawn), shared_values(thresholds, "m", "0"), SETTINGS, thresholds)


def by_class(row: Row) -> dict[str, Row]:
    return {one["class"]: one for one in row["classes"]}


def test_each_class_has_its_mask_threshold_and_area() -> None:
    row = row_of(masks())
    assert [one["class"] for one in row["classes"]] == list(CLASSES)
    for name, one in by_class(row).items():
        assert (codecs.decode_rle(one["mask"], 64, 64) == masks()[name]).all()
        assert (one["threshold"], one["area_px"]) == (THRESHOLDS[name], masks()[name].sum())
        assert one["mean_probability"] == pytest.approx(0.9)
        assert [one[metric] for metric in COMPARED] == [None] * len(COMPARED)
    assert by_class(row)["opacity"]["components"] == 2
    assert table([row], PREDICTIONS).to_pylist()[0]["classes"][3]["area_px"] == masks()["opacity"].sum()


def test_each_class_that_is_not_empty_has_a_doubt() -> None:
    drawn = {**masks(), "opacity": box(0, 0, 0, 0)}
    doubts = {name: one["doubt"] for name, one in by_class(row_of(drawn)).items()}
    pixels = int(drawn["heart"].sum())
    expected = 1 - 2 * 0.9 * pixels / (0.9 * pixels + 0.1 * (64 * 64 - pixels) + pixels)
    assert doubts["heart"] == pytest.approx(expected, abs=1e-6)
    assert doubts["opacity"] is None


def test_the_lung_columns_describe_the_union_of_both_lungs() -> None:
    drawn = masks()
    row, mask = make_row_and_mask(
        opened(), prediction(drawn), shared_values(THRESHOLDS, "m", "0"), SETTINGS, THRESHOLDS
    )
    assert mask is not None
    assert (mask.to_mask() == drawn["right_lung"] | drawn["left_lung"]).all()
    assert (row["right_lung_px"], row["left_lung_px"]) == (drawn["right_lung"].sum(), drawn["left_lung"].sum())
    assert (row["area_px"], row["components"], row["threshold"]) == (mask.area, 2, 0.5)


def test_areas_of_the_lungs_are_those_of_their_classes() -> None:
    drawn = {**masks(), "right_lung": box(15, 50, 30, 40), "left_lung": box(15, 50, 40, 56)}
    row = row_of(drawn)
    assert (row["right_lung_px"], row["left_lung_px"]) == (350, 560)


def test_one_lung_class_and_two_give_the_same_lung_columns() -> None:
    drawn = masks()
    lungs = drawn["right_lung"] | drawn["left_lung"]
    one = make_row(opened(), prediction({"lung": lungs}), shared_values({"lung": 0.5}, "m", "0"), SETTINGS)
    two = row_of(drawn)
    assert one["classes"] is None is one["mask_classes"]
    different = {name for name in PREDICTIONS.names if one[name] != two[name]}
    assert different <= {"classes", "mask_classes", "mask_uris", "seconds", *MEASURES}


def test_two_thresholds_of_the_lungs_leave_the_column_empty() -> None:
    assert row_of(masks(), right_lung=0.4)["threshold"] is None
    assert row_of(masks(), right_lung=0.95)["right_lung_px"] == 0


def test_a_model_without_lungs_has_no_lung_columns() -> None:
    row = row_of({"heart": masks()["heart"]}, {"heart": masks()["heart"]})
    assert (row["status"], row["mask"], row["flags"], row["doubt"], row["dice"]) == ("ok", None, [], None, None)
    assert by_class(row)["heart"]["dice"] == 1
    assert row["mask_uris"] == ["/h.png"]


def test_each_annotated_class_is_compared() -> None:
    drawn = masks()
    lungs = drawn["right_lung"] | drawn["left_lung"]
    row = row_of(drawn, {"lung": lungs, "heart": np.roll(drawn["heart"], 5, axis=0)})
    values = {name: one["dice"] for name, one in by_class(row).items()}
    assert values == {"right_lung": None, "left_lung": None, "heart": 0.75, "opacity": None}
    assert (row["dice"], row["hd95_px"]) == (1, 0)


def test_organs_are_one_component_and_opacities_several() -> None:
    drawn = masks()
    speck = box(2, 4, 30, 33)
    drawn["heart"][40, 30] = 0
    row = row_of({name: mask | speck for name, mask in drawn.items()})
    areas = {name: one["area_px"] for name, one in by_class(row).items()}
    assert areas == {
        "right_lung": drawn["right_lung"].sum(),
        "left_lung": drawn["left_lung"].sum(),
        "heart": drawn["heart"].sum() + 1,
        "opacity": drawn["opacity"].sum() + 6,
    }
    assert row["removed_px"] == 6


def test_recomputing_finds_changed_values_of_a_class() -> None:
    row = row_of(masks())
    shared = shared_values(THRESHOLDS, "m", "0")
    arguments = (shared, PreprocessSettings(size=64, classes=CLASSES), recompute.Samples(), THRESHOLDS)
    row |= {"mask_uris": [], "mask_classes": []}
    assert recompute.check_row(row, *arguments) == []
    row["classes"][2]["area_px"] += 1
    assert recompute.check_row(row, *arguments) == ["area_px of heart is 401, but the mask gives 400"]
    row["right_lung_px"] += 1
    assert recompute.check_row(row, *arguments)[0].startswith("right_lung_px is 561, but the mask gives 560")
    row["classes"].pop()
    assert "classes are right_lung, left_lung, heart, but the plan" in recompute.check_row(row, *arguments)[0]


@pytest.mark.parametrize("plan", [{}, {"threshold": None}, {"thresholds": {}}])
def test_a_plan_without_a_threshold_is_damaged(plan: Row) -> None:
    with pytest.raises(InputError, match="no threshold: the file is damaged"):
        stored_thresholds(plan)
