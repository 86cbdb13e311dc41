"""Read the images and reference masks of predictions again."""

import functools

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config import PreprocessSettings
from lungseg.config.class_names import LUNG, compared_classes
from lungseg.dataset import sample_reader
from lungseg.dataset.catalog import describe_dataset
from lungseg.dataset.reference_masks import annotated_masks, native_masks
from lungseg.dataset.shard_format import Classes
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import read_geometry, restore
from lungseg.imaging.intensity import normalise
from lungseg.imaging.orientation import UPRIGHT
from lungseg.ingest import record_checks
from lungseg.predictions.class_masks import class_names
from lungseg.schema import Record, Sample
from lungseg.storage.json_files import parse_json
from lungseg.storage.table_formats import INDEX_TABLE


def orientation_of(row: Row) -> int:
    """Return the orientation of the stored pixels of a predicted image, in which its mask is stored.

    Raises:
        InputError: the row's geometry is damaged.

    """
    text = row.get("geometry")
    return read_geometry(parse_json(text.encode(), "the geometry")).orientation if text else UPRIGHT


def read_image_and_masks(row: Row) -> tuple[U8, dict[str, U8], str]:
    """Read an upright image u8[H,W], its reference masks u8[H,W] in {0,1} by class of the row, and a note about them.

    Raises:
        InputError: the image is missing or cannot be read.

    """
    classes = class_names(row)
    tar, separator, image_id = row["source_uri"].rpartition("#")
    if separator and tar.endswith(".tar"):
        compared = compared_classes(classes)
        sample = _read_sample(tar, image_id, compared)
        restored = native_masks(sample, compared)
        references = {name: restored[name] for name in classes if name in restored}
        return _native_image(sample), references, "grey values as prepared"
    if not storage.exists(row["source_uri"]):
        raise InputError(f"{row['source_uri']} is missing")
    has_dice = is_compared(row)
    files = tuple(row["mask_uris"] or ()) if has_dice else ()
    values = tuple(row["mask_values"] or ()) if has_dice else ()
    kinds = tuple(row.get("mask_classes") or (LUNG,) * len(files)) if has_dice else ()
    record = Record(row["image_id"], row["dataset"], row["source_uri"], files, kinds, mask_values=values)
    # With the same corrections as for the prediction: inverted where bones are dark, the mask repaired.
    checked, image, masks = record_checks.open_with_usable_masks(record, PreprocessSettings(classes=classes))
    references = {} if masks is None else annotated_masks(masks, classes)
    if image is None:  # the file changed and is now rejected by the image checks
        image = codecs.decode(storage.read_bytes(row["source_uri"]), storage.name_of(row["source_uri"]))
    note = f"reference mask: {checked.message}" if has_dice and not references else ""
    return normalise(image, "none"), references, note


def is_compared(row: Row) -> bool:
    """Return whether the lungs or a class of a row were compared with a reference mask."""
    return any(entry["dice"] is not None for entry in (row, *(row.get("classes") or ())))


def _read_sample(tar: str, image_id: str, wanted: tuple[str, ...]) -> Sample:
    if not storage.exists(tar):
        raise InputError(f"{tar} is missing")
    shard, folder = storage.name_of(tar).removesuffix(".tar"), storage.parent_of(tar)
    row = _index(storage.join(folder, "index.parquet")).get((shard, image_id))
    if row is None:
        raise InputError(f"{tar}: {image_id} is no longer in the index: the dataset was prepared again")
    return sample_reader.read_sample(tar, row, Classes(_stored_classes(folder), wanted))


@functools.lru_cache(4)
def _stored_classes(folder: str) -> tuple[str, ...]:
    """Read the classes of a prepared dataset and cache them, as the index."""
    return describe_dataset(folder).preprocess.classes


@functools.lru_cache(4)
def _index(path: str) -> dict[tuple[str, str], Row]:
    """Read an index and cache it: an export reads every sample of it."""
    return {(row["shard"], row["image_id"]): row for row in storage.read_table(path, expected=INDEX_TABLE).to_pylist()}


def _native_image(sample: Sample) -> U8:
    return np.rint(restore(sample.image.astype(np.float32), sample.geometry)).astype(np.uint8)
