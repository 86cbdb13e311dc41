"""The images that are measured: the user's own, or phantoms."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import F32, U8
from lungseg.config import BenchSettings, InferSettings, PreprocessSettings
from lungseg.dataset import catalog
from lungseg.dataset.catalog import PreparedDataset
from lungseg.errors import InputError
from lungseg.imaging import codecs, phantom
from lungseg.inference.inputs import list_items
from lungseg.inference.items import Item, OpenedImage, open_item
from lungseg.ingest import record_checks, sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.training.study_classes import require_usable_classes, study_classes
from lungseg.training.study_data import open_training_data

T = TypeVar("T")

_IMAGES = 8  # of an archive
_ENLARGED = 4  # times as large as the model's input: 2048 px for 512
_GRAIN = 4.0  # grey levels; without grain, the enlarged image would be smaller and decode faster than an X-ray
_BORDER = 3.0  # px, standard deviation of the blur that turns a mask into probabilities


def open_data(settings: BenchSettings, phantoms: str) -> list[PreparedDataset]:
    """Open the prepared data to train on; without any, prepare the phantoms of an archive.

    Raises:
        InputError: the data cannot be used for training.
        SettingsError: their classes do not fit the settings.

    """
    if settings.data:
        data = open_training_data(catalog.find_datasets([storage.resolve(path) for path in settings.data]))
        require_usable_classes(settings.training, data, study_classes(data))
        return data
    out = storage.join(storage.resolve(settings.out), f"data-{settings.size}")
    records = record_checks.reject_duplicate_ids(sources.discover(phantoms))
    preprocess = PreprocessSettings(size=settings.size)
    dataset_writer.write_datasets(plan_shards(records, out, preprocess, images_per_shard=64))
    return open_training_data(catalog.find_datasets([out]))


def open_images(
    settings: BenchSettings, preprocess: PreprocessSettings, phantoms: str
) -> list[tuple[Item, OpenedImage]]:
    """List up to eight images of the archive and open each once, without its mask; or enlarge the phantoms.

    Raises:
        InputError: the archive is prepared data, or none of these images can be segmented.

    """
    archive = settings.archive or _enlarge(settings, phantoms)
    items = _spread(list(list_items(InferSettings(archive=archive), preprocess)), _IMAGES)
    if any(item.row is not None for item in items):
        raise InputError(f"{archive} is prepared data: pass it as --data, and a folder of X-rays as --archive")
    items = [
        replace(item, record=replace(item.record, mask_uris=(), mask_classes=(), mask_values=())) for item in items
    ]
    opened = [(item, open_item(item, preprocess)) for item in items]
    usable = [(item, image) for item, image in opened if image.square is not None]
    if not usable:
        message = opened[0][1].record.message
        raise InputError(
            f"{archive}: none of {len(items)} images can be segmented; first: {message}: pass other X-rays"
        )
    return usable


def plausible_probability(size: int) -> F32:
    """Return probabilities f32[S,S] with two lungs and soft borders, as a trained model predicts them."""
    mask = phantom.draw(3, "montgomery", size)[1].astype(np.float32)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), _BORDER), np.float32)


def _enlarge(settings: BenchSettings, phantoms: str) -> str:
    """Write the phantoms without masks at the size of radiographs; return the folder."""
    side = _ENLARGED * settings.size
    folder = storage.join(storage.resolve(settings.out), f"archive-{side}")
    paths = [path for path in storage.list_files(phantoms, (".png",)) if Path(path).parent.name == "images"]
    for number, path in enumerate(_spread(sorted(paths), _IMAGES)):
        target = storage.join(folder, storage.name_of(path))
        if not storage.exists(target):
            storage.write_bytes(target, codecs.encode_image(_enlarged(path, side, number)))
    return folder


def _enlarged(path: str, side: int, seed: int) -> U8:
    image = codecs.decode(storage.read_bytes(path), path).astype(np.float32)
    large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(seed).normal(0.0, _GRAIN, large.shape)
    return np.asarray(np.clip(np.rint(large + grain), 0, 255), np.uint8)


def _spread(values: Sequence[T], count: int) -> list[T]:
    """Return up to `count` of the values, spread evenly."""
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]
