"""Doubt of a prediction: one score for ranking, and words for where it lies."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.arrays import F32, U8, Bools
from lungseg.imaging.lung_sides import midline, split_sides
from lungseg.imaging.run_lengths import Runs
from lungseg.ingest.reason_codes import QUESTIONABLE, REGISTRY

NOTHING_UNUSUAL, NO_UNUSUAL_PLACE = "nothing unusual", "no unusual place"
"""Reasons where the doubt is high nowhere: without any flag, and with flags that question neither image nor mask."""
_BORDER = 0.02  # of the longer side: width of the band on each side of the mask's border, 7 mm of a 35 cm film
_AWAY = 0.05  # share of the doubt away from the border that is named; less is usual
_UNSURE = 0.1  # difference of probability and mask in one of its pixels; less is a haze over the whole image
_ONE_SIDE = 0.7  # share of this doubt that is called one side
_BLURRED = 1.3  # doubt of a part of the border over the median of the six parts
_SIDE = 128  # px, longer side of what is searched for the place; 512 px take ten times as long
_THIRDS = ("upper", "middle", "lower")

F64 = NDArray[np.float64]


def measure_doubt(probability: F32, mask: U8) -> float:
    """Return 1 minus the soft Dice confidence of a mask u8[H,W] in {0,1} under probabilities f32[H,W] in [0,1].

    0: certain; 1: an empty mask. Source: Borges et al., Soft Dice Confidence, arXiv 2402.10665.
    """
    inside = float(probability[mask == 1].sum(dtype=np.float64))
    total = float(probability.sum(dtype=np.float64)) + int(np.count_nonzero(mask))
    return float(np.float32(1.0 - 2.0 * inside / total if total else 1.0))  # as the column stores it


def describe_doubt(probability: F32, mask: U8, flags: Sequence[str]) -> str:
    """Say why a prediction is doubtful: the sentences of its flags, else where the doubt is unusually high.

    flags: codes of all flags of the row. probability f32[H,W] in [0,1] and mask u8[H,W] in {0,1} are upright.
    """
    sentences = [REGISTRY[flag].meaning for flag in flags if flag in QUESTIONABLE]
    place = " ".join(sentences) or _locate(probability, mask)
    return place or (NO_UNUSUAL_PLACE if flags else NOTHING_UNUSUAL)


def _locate(probability: F32, mask: U8) -> str:
    """Name the place of the doubt; "" if it is spread as usual.

    The score is the sum of |probability - mask| over the pixels, up to a factor.
    """
    amount, mask = _shrink(np.abs(probability - mask)).astype(np.float64), (_shrink(mask) >= 0.5).astype(np.uint8)
    if not mask.any():
        return ""
    radius = max(1, round(_BORDER * max(mask.shape)))
    block = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    grown, shrunk = cv2.dilate(mask, block), cv2.erode(mask, block)
    inside, outside = ((region & (amount >= _UNSURE)) for region in (shrunk == 1, grown == 0))
    away = {"unsure inside": amount[inside].sum(), "possible lung outside": amount[outside].sum()}
    words = max(away, key=lambda name: float(away[name]))
    if away[words] > _AWAY * amount.sum():
        return f"{words} {_name_side(amount, inside if words == 'unsure inside' else outside, mask)}"
    return _name_border(amount, grown != shrunk, mask, block)


def _shrink(values: F32 | U8) -> F32:
    scale = min(1.0, _SIDE / max(values.shape))
    size = (max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale)))
    return np.asarray(cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def _name_side(amount: F64, region: Bools, mask: U8) -> str:
    column = midline(Runs.from_mask(mask))
    right = amount[:, :column][region[:, :column]].sum() / amount[region].sum()
    return "the right lung" if right >= _ONE_SIDE else "the left lung" if right <= 1 - _ONE_SIDE else "both lungs"


def _name_border(amount: F64, border: Bools, mask: U8, block: U8) -> str:
    """Name the third of a lung whose border has the highest mean doubt, if it is clearly above the others."""
    means: dict[str, float] = {}
    for side, lung in zip(("right", "left"), split_sides(mask), strict=True):
        _, top, _, height = cv2.boundingRect(lung)
        near = border & (cv2.dilate(lung, block) == 1)
        ends = [0, top + height // 3, top + 2 * height // 3, len(mask)]
        for third, start, end in zip(_THIRDS, ends, ends[1:], strict=False):
            values = amount[start:end][near[start:end]]
            means[f"{third} {side} lung"] = float(values.mean()) if values.size else 0.0
    name = max(means, key=lambda part: means[part])
    return f"blurred border of the {name}" if means[name] > _BLURRED * np.median(list(means.values())) else ""
