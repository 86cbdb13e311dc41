"""The prepared datasets of a study, checked for training."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset, open_dataset
from lungseg.dataset.fold_table import read_fold_table, with_folds
from lungseg.dataset.masked_rows import masked, masked_rows
from lungseg.dataset.training_index import TrainingIndex, build_index, open_index
from lungseg.errors import InputError, SettingsError
from lungseg.plurals import counted
from lungseg.training.run import Run
from lungseg.training.study_classes import has_masks, study_classes

logger = logging.getLogger(__name__)


def open_training_data(folders: Sequence[str], settings: TrainSettings | None = None) -> list[PreparedDataset]:
    """Open prepared datasets and keep their samples with a mask, with the folds of --folds-from if settings name it.

    With a teacher, samples without a mask are kept too.

    Raises:
        InputError: no sample has a mask, two datasets have the same name, they were prepared differently, their classes
            do not fit, or the table of folds does not fit them.
        SettingsError: the table has another number of folds, or the images cannot be halved.

    """
    opened = [open_dataset(folder) for folder in folders]
    if settings is not None and settings.teacher:
        data = [dataset for dataset in opened if dataset.index.num_rows]
        _log_images_without_masks(data)
    else:
        data = [kept for dataset in opened if (kept := _with_masks(dataset)) is not None]
    if not any(map(has_masks, data)):
        images = sum(dataset.index.num_rows for dataset in opened)
        raise InputError(
            f"{', '.join(folders)}: none of {counted(images, 'image')} has a mask: training needs masks; prepare "
            "them too"
        )
    for dataset in data:
        same_classes = {"classes": data[0].preprocess.classes}  # these may differ
        differences = dataset.preprocess.model_copy(update=same_classes).differences(data[0].preprocess)
        if differences:
            raise InputError(
                f"{dataset.folder} was not prepared like {data[0].folder} ({differences}): prepare both with the same "
                "settings"
            )
        if settings is not None and settings.half_size_epochs and dataset.preprocess.size % 32:
            raise SettingsError(
                f"--half-size-epochs {settings.half_size_epochs}: {dataset.folder} has images of "
                f"{dataset.preprocess.size} px, but half the size must be a multiple of 16: prepare it with another "
                "--preprocess.size, or pass 0"
            )
        same_name = [other.folder for other in data if other.name == dataset.name]
        if len(same_name) > 1:
            raise InputError(f"datasets named {dataset.name}: {', '.join(same_name)}: prepare them with own --dataset")
    study_classes(data)
    if settings is None or not settings.folds_from:
        return data
    return with_folds(data, read_fold_table(settings.folds_from), settings.folds)


def _log_images_without_masks(data: Sequence[PreparedDataset]) -> None:
    for dataset in data:
        if missing := int((~masked(dataset.index)).sum()):
            total = counted(dataset.index.num_rows, "image")
            lack = "has no mask and is" if missing == 1 else "have no mask and are"
            logger.info("%s: %d of %s %s trained on with the teacher alone", dataset.name, missing, total, lack)


def _with_masks(dataset: PreparedDataset) -> PreparedDataset | None:
    """Keep the samples with a mask and log how many have none; None if no sample has one."""
    kept = masked_rows(dataset.index)
    missing = dataset.index.num_rows - kept.num_rows
    if missing:
        total = dataset.index.num_rows
        lack = "has no mask and is skipped" if missing == 1 else "have no mask and are skipped"
        logger.warning("%s: %d of %s %s", dataset.name, missing, counted(total, "image"), lack)
        dataset = replace(dataset, index=kept)
    return dataset if dataset.index.num_rows else None


def open_run_index(run: Run) -> TrainingIndex:
    """Open the training index of a run; make one where the driver wrote none.

    Raises:
        LungsegError: as `open_training_data`, or the file of the index cannot be read.

    """
    if run.index:
        return open_index(run.index)
    return build_index(open_training_data(run.data, run.settings), run.linked, run.plan.folds, run.plan.split_seed)


def require_enough_images(images: int, name: str, workers: int, min_batch_size: int) -> None:
    """Check that every rank has at least min_batch_size of the training images of an epoch.

    Raises:
        SettingsError: there are too few.

    """
    needed = min_batch_size * workers
    if images < needed:
        raise SettingsError(
            f"{name}: {counted(images, 'training image')}, {needed} needed for {counted(workers, 'worker')}: "
            "lower --workers-per-run"
        )
