"""What training does with a sample before it joins a batch: half size, augmentation, custom code. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from lungseg.arrays import U8
from lungseg.config import AugmentSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.dataset.shard_format import masks_of
from lungseg.schema import Sample
from lungseg.training.augment import augment
from lungseg.training.custom_augmentation import CustomAugmentation

Transform = Callable[[Sample], Sample]


class EpochTransform(NamedTuple):
    """The arguments of `make_transform` in one epoch, for another process."""

    settings: AugmentSettings
    seed: int
    epoch: int
    halves: bool = False
    classes: tuple[str, ...] = ONE_CLASS


def make_transform(
    settings: AugmentSettings, seed: int, epoch: int, halves: bool = False, classes: Sequence[str] = ONE_CLASS
) -> Transform:
    """Return the random augmentation of training samples in one epoch; a custom one is applied last.

    halves: reduce image and masks to half the size first. classes: of the masks.

    Raises:
        SettingsError: a custom augmentation cannot be imported. The transform raises it if the custom one fails.

    """
    custom_augmentation = CustomAugmentation(settings.custom) if settings.custom else None

    def transform(sample: Sample) -> Sample:
        key = (seed, epoch, sample.image_id)
        image, masks = sample.image, masks_of(sample, len(classes))
        if halves:
            image, masks = _halve(image), np.stack([_halve(mask) for mask in masks])
        image, masks = augment(image, masks, settings, key, classes)
        if custom_augmentation is not None:
            image, masks = custom_augmentation(image, masks, key)
        return replace(sample, image=image, masks=masks)

    return transform


def _halve(array: U8) -> U8:
    """Return u8[S,S] at half the size; each pixel is the rounded mean of four, in a mask 1 for two or more."""
    return np.asarray(cv2.resize(array, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
