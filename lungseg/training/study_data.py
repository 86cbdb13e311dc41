"""The prepared data that a study learns from: opened, checked against each other, and enough for every rank."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import pyarrow.compute as pc

from lungseg.dataset.catalog import PreparedDataset, open_dataset
from lungseg.dataset.folds import Split
from lungseg.errors import InputError, SettingsError

logger = logging.getLogger(__name__)


def open_training_data(folders: Sequence[str]) -> list[PreparedDataset]:
    """Open prepared data sets for training: all prepared alike, and of each the samples with a mask.

    Raises:
        InputError: no sample has a mask, two data sets bear one name, or they were prepared differently.

    """
    opened = [open_dataset(folder) for folder in folders]
    data = [kept for part in opened if (kept := _with_masks(part)) is not None]
    if not data:
        images = sum(part.index.num_rows for part in opened)
        raise InputError(
            f"{', '.join(folders)}: none of {images} images has a mask: training needs masks; prepare them too"
        )
    for part in data:
        if part.preprocess.classes != ("lung",):
            raise InputError(
                f"{part.folder}: masks of {', '.join(part.preprocess.classes)}, this version learns lungs alone: "
                "prepare it with --preprocess.classes lung"
            )
        unlike = part.preprocess.differences(data[0].preprocess)
        if unlike:
            raise InputError(f"{part.folder} was prepared unlike {data[0].folder} ({unlike}): prepare both alike")
        if [other.name for other in data].count(part.name) > 1:
            raise InputError(f"{part.folder}: a second data set named {part.name}: prepare it with another --dataset")
    return data


def _with_masks(part: PreparedDataset) -> PreparedDataset | None:
    """Keep the samples that can be learnt from, and say how many cannot; None where there is none."""
    having = pc.greater(part.index.column("mask_size"), 0)
    index = part.index.filter(having)
    without = part.index.num_rows - index.num_rows
    if without:
        logger.warning("%s: %d of %d images have no mask and are left out", part.name, without, part.index.num_rows)
    return replace(part, index=index) if index.num_rows else None


def require_enough_images(parts: Split, name: str, workers: int, least: int) -> None:
    """Refuse a run in which some rank would train on fewer than `least` images.

    Raises:
        SettingsError: it would.

    """
    if len(parts.train) < least * workers:
        raise SettingsError(
            f"{name}: {len(parts.train)} training images, {least * workers} needed for {workers} workers: "
            "lower --workers-per-run"
        )
