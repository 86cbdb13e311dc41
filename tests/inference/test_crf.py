"""The conditional random field moves a mask to the edges of the image, and does nothing where there are none."""

import cv2
import numpy as np
import pytest

from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.imaging.geometry import plan_geometry
from lungseg.inference import crf
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.inference.rows import make_row
from lungseg.schema import Record

SIDE = 128
SHARED = {"threshold": 0.5, "model_name": "lungs", "model": "0123456789abcdef"}


def disk(radius: int, column: int = 64) -> np.ndarray:
    return cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (column, 64), radius, 1, -1)


def unsure(mask: np.ndarray) -> np.ndarray:
    """Return probabilities that fall from 0.65 to 0.35 over some pixels at the border of a mask."""
    return cv2.GaussianBlur(0.35 + 0.3 * mask.astype(np.float32), (0, 0), 3)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("threshold", [0.35, 0.5])
def test_mask_moves_to_the_edge_in_the_image(threshold: float) -> None:
    image = 60 + 120 * disk(40)
    probability = unsure(disk(36)) + np.float32(threshold - 0.5)
    refined = crf.refine(probability, image, threshold)
    assert refined.dtype == np.float32
    assert 0 <= refined.min() < refined.max() <= 1
    before, after = (dice(values >= threshold, disk(40) == 1) for values in (probability, refined))
    assert after > before + 0.01


def test_sure_mask_of_a_flat_image_stays() -> None:
    probability = 0.02 + 0.96 * disk(36).astype(np.float32)
    refined = crf.refine(probability, np.full((SIDE, SIDE), 100, np.uint8), 0.5)
    assert dice(refined >= 0.5, disk(36) == 1) > 0.995


def test_lone_pixels_follow_their_neighbours() -> None:
    probability = 0.1 + 0.8 * disk(36).astype(np.float32)
    probability[64, 64], probability[5, 5] = 0.3, 0.7
    refined = crf.refine(probability, 60 + 120 * disk(36), 0.5)
    np.testing.assert_array_equal(refined >= 0.5, disk(36) == 1)


def test_only_the_mask_is_refined_and_only_if_asked() -> None:
    geometry = plan_geometry(SIDE, SIDE, PreprocessSettings(size=SIDE))
    record = Record("image", "data", "image.png", height=SIDE, width=SIDE)
    opened = OpenedImage(record, 60 + 120 * disk(40), geometry)
    prediction = Prediction(unsure(disk(36))[None], 1, False)
    plain, refined = (make_row(opened, prediction, SHARED, PostprocessSettings(crf=crf)) for crf in (False, True))
    assert plain["area_px"] == pytest.approx(disk(36).sum(), rel=0.02)
    assert plain["area_px"] < refined["area_px"] <= disk(40).sum()
    assert refined["doubt"] == plain["doubt"]
    assert make_row(opened, prediction, SHARED, PostprocessSettings(crf=True))["mask"] == refined["mask"]
