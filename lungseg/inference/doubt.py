"""Doubt of a prediction: one score for ranking, and words for where it lies."""

from collections.abc import Sequence

import cv2
import numpy as np

from lungseg.arrays import F32, U8
from lungseg.imaging.lung_sides import midline
from lungseg.ingest.reason_codes import QUESTIONABLE, REGISTRY

NO_PLACE = "no flag; score only"
_BORDER = 0.02  # of the longer side: width of the band on each side of the mask's border, 7 mm of a 35 cm film
_PLACES = {
    "border": "blurred border of",
    "inside": "unsure inside",
    "outside": "possible lung outside",
}
_MAIN = 0.5  # share of the doubt that is called its place
_ONE_SIDE = 0.7  # share of the doubt of this place that is called one side


def measure_doubt(probability: F32, mask: U8) -> float:
    """Return 1 minus the soft Dice confidence of a mask u8[H,W] in {0,1} under probabilities f32[H,W] in [0,1].

    0: certain; 1: an empty mask. Source: Borges et al., Soft Dice Confidence, arXiv 2402.10665.
    """
    inside = float(probability[mask == 1].sum(dtype=np.float64))
    total = float(probability.sum(dtype=np.float64)) + int(np.count_nonzero(mask))
    return float(np.float32(1.0 - 2.0 * inside / total if total else 1.0))  # as the column stores it


def describe_doubt(probability: F32, mask: U8, flags: Sequence[str]) -> str:
    """Say why a prediction is doubtful: the sentences of its flags, else where most of the doubt lies.

    probability f32[H,W] in [0,1] and mask u8[H,W] in {0,1} are upright.
    """
    sentences = [REGISTRY[flag].meaning for flag in flags if flag in QUESTIONABLE]
    return " ".join(sentences) or _locate(probability, mask)


def _locate(probability: F32, mask: U8) -> str:
    """Name the place with most of the doubt, which is the sum of |probability - mask| over the pixels."""
    amount = np.abs(probability.astype(np.float64) - mask)
    radius = max(1, round(_BORDER * max(mask.shape)))
    block = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    grown, shrunk = cv2.dilate(mask, block), cv2.erode(mask, block)
    regions = {"border": grown != shrunk, "inside": shrunk == 1, "outside": grown == 0}
    by_place = {name: float(amount[region].sum()) for name, region in regions.items()}
    place = max(by_place, key=lambda name: by_place[name])
    if not mask.any() or by_place[place] <= _MAIN * sum(by_place.values()):
        return NO_PLACE
    column = midline(mask)
    right = float(amount[:, :column][regions[place][:, :column]].sum()) / by_place[place]
    side = "the right lung" if right >= _ONE_SIDE else "the left lung" if right <= 1 - _ONE_SIDE else "both lungs"
    return f"{_PLACES[place]} {side}"
