"""The masks of the classes of one image at native size, and the lungs that some of them make up."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lungseg.arrays import F32, U8, Row
from lungseg.config import PostprocessSettings
from lungseg.config.class_names import LUNG, LUNG_SIDES, ONE_CLASS, lung_parts
from lungseg.imaging.coco_rle import decode_runs, encode_runs
from lungseg.imaging.derived_measures import find_mirrored, measure
from lungseg.imaging.restored_runs import restore_runs
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import crf, mask_shape, postprocess
from lungseg.inference.comparison import compare
from lungseg.inference.doubt import measure_doubt
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.schema import Geometry


@dataclass(frozen=True)
class ClassMask:
    """Upright masks of a class, or of the lungs.

    raw, mask: at native size, before and after post-processing. probability: f32[h,w], the part of the model's square
    that shows the image. reached: u8[h,w] in {0,1}, its pixels that reach the threshold. reference: None if the image
    does not annotate the class. sides: masks of the right and of the left lung, where these are classes of their own.
    """

    raw: Runs
    mask: Runs
    probability: F32
    reached: U8
    reference: Runs | None
    sides: tuple[Runs, Runs] | None = None


def make_class_masks(
    opened: OpenedImage,
    geometry: Geometry,
    prediction: Prediction,
    thresholds: Mapping[str, float],
    settings: PostprocessSettings,
) -> dict[str, ClassMask]:
    """Restore the masks of all classes to native size and post-process them. thresholds: in the classes' order."""
    masks: dict[str, ClassMask] = {}
    for (name, threshold), probability in zip(thresholds.items(), prediction.probability, strict=True):
        raw = restore_runs(_refined(opened, geometry, probability, threshold, settings), geometry, threshold)
        shown = probability[geometry.content()]
        reached = (shown >= threshold).astype(np.uint8)
        cleaned = postprocess.clean(raw, settings, name)
        masks[name] = ClassMask(raw, cleaned, shown, reached, _reference(opened, name, raw.shape))
    return masks


@dataclass(frozen=True)
class Derived:
    """What follows from the masks of several classes together: columns of the row, and flags."""

    columns: Row
    flags: tuple[str, ...]


def derive(masks: Mapping[str, Runs]) -> Derived:
    """Measure the upright masks of several classes; nothing for the one class lung."""
    if tuple(masks) == ONE_CLASS:
        return Derived({}, ())
    return Derived(measure(masks), tuple(find_mirrored(masks)))


def join_lungs(masks: Mapping[str, ClassMask], opened: OpenedImage) -> ClassMask | None:
    """Return both lungs: their union where each is a class, with the larger probability; None without lungs."""
    parts = [masks[name] for name in lung_parts(tuple(masks))]
    if len(parts) < len(LUNG_SIDES):
        return parts[0] if parts else None
    right, left = parts
    return ClassMask(
        right.raw.union(left.raw),
        right.mask.union(left.mask),
        np.maximum(right.probability, left.probability),
        right.reached | left.reached,
        _reference(opened, LUNG, right.raw.shape),
        (right.mask, left.mask),
    )


def lung_threshold(thresholds: Mapping[str, float]) -> float | None:
    """Return the threshold of both lungs; None without lungs, or where each lung has another one."""
    values = {thresholds[name] for name in lung_parts(tuple(thresholds))}
    return values.pop() if len(values) == 1 else None


def describe_classes(
    masks: Mapping[str, ClassMask], thresholds: Mapping[str, float], orientation: int
) -> list[Row] | None:
    """Return the items of the column `classes`; None for the one class lung, which the other columns describe."""
    if tuple(masks) == ONE_CLASS:
        return None
    return [
        {
            "class": name,
            "mask": encode_runs(mask_shape.as_stored(one.mask, orientation)),
            "threshold": thresholds[name],
            "area_px": one.mask.area,
            "components": postprocess.count_components(one.mask),
            "mean_probability": mask_shape.mean_probability(one.probability, one.reached),
            "doubt": measure_doubt(one.probability, one.reached) if one.mask.area else None,
            **compare(one.mask, one.reference),
        }
        for name, one in masks.items()
    ]


def _reference(opened: OpenedImage, name: str, shape: tuple[int, int]) -> Runs | None:
    counts = opened.references.get(name)
    return None if counts is None else decode_runs(counts, *shape)


def _refined(
    opened: OpenedImage, geometry: Geometry, probability: F32, threshold: float, settings: PostprocessSettings
) -> F32:
    """Return the probabilities f32[S,S] from which the mask is made. The confidence and the doubt are the model's."""
    if not settings.crf or opened.square is None:
        return probability
    content, refined = geometry.content(), probability.copy()
    refined[content] = crf.refine(probability[content], opened.square[content], threshold)
    return refined
