"""The reference masks of an image by class."""

from collections.abc import Sequence

import numpy as np

from lungseg.arrays import U8
from lungseg.config.class_names import LUNG, LUNG_SIDES
from lungseg.imaging.geometry import restore
from lungseg.imaging.lung_sides import split_sides
from lungseg.schema import Sample, is_annotated


def annotated_masks(masks: U8, classes: Sequence[str]) -> dict[str, U8]:
    """Return those of the masks u8[K,H,W] of these classes that are annotated, u8[H,W] in {0,1}."""
    return {name: mask for name, mask in zip(classes, masks, strict=True) if is_annotated(mask)}


def native_masks(sample: Sample, classes: Sequence[str]) -> dict[str, U8]:
    """Return the annotated masks of a prepared sample, read with these classes: u8[H,W] in {0,1}, upright, native size.

    Lungs that have no mask of their own are divided by `split_sides` if right or left lung is among the classes.
    """
    if sample.masks is None:
        return {}
    masks = {
        name: (restore(mask.astype(np.float32), sample.geometry) >= 0.5).astype(np.uint8)
        for name, mask in annotated_masks(sample.masks, classes).items()
    }
    sides = {*LUNG_SIDES}.intersection(classes)
    if LUNG in masks and sides and sides.isdisjoint(masks):
        masks |= dict(zip(LUNG_SIDES, split_sides(masks[LUNG]), strict=True))
    return masks
