"""Images to predict, opened images and predictions. Does not import torch."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.arrays import F32, U8, Grey, Row
from lungseg.config import Backend, Precision, PreprocessSettings, Tta
from lungseg.config.class_names import ONE_CLASS, compared_classes
from lungseg.dataset import sample_reader
from lungseg.dataset.reference_masks import annotated_masks, native_masks
from lungseg.dataset.shard_format import Classes
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import prepare_image
from lungseg.imaging.orientation import UPRIGHT
from lungseg.ingest import record_checks
from lungseg.ingest.image_checks import orientation_note
from lungseg.ingest.reason_codes import Note, reject, with_notes
from lungseg.ingest.record_checks import ReadFile
from lungseg.schema import Geometry, Record

Stat = tuple[int, int] | None  # size in bytes and time of change; None: no such file

LEVELS = 65535.0
"""Level of a probability of 1, see `to_levels`."""
_ADVICE = "restore the file, or pass another --out"


@dataclass(frozen=True)
class Item:
    """One image to predict: the record of image files, or a sample in a tar with its index row.

    stats: of each of `files()` when the job was planned. classes: of the masks in the tar.
    """

    record: Record
    tar: str = ""
    row: Row | None = None
    stats: tuple[Stat, ...] = ()
    classes: tuple[str, ...] = ONE_CLASS

    def files(self) -> tuple[str, ...]:
        """Return the files that contain the image and its masks."""
        return (self.tar,) if self.tar else (self.record.image_uri, *self.record.mask_uris)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; classes only if they are not the one class lung."""
        classes = {} if self.classes == ONE_CLASS else {"classes": self.classes}
        return {"record": self.record.to_dict(), "tar": self.tar, "row": self.row, "stats": self.stats, **classes}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Restore the output of `to_dict`, also after a round trip through JSON."""
        stats = tuple(None if stat is None else (stat[0], stat[1]) for stat in value["stats"])
        classes = tuple(value.get("classes", ONE_CLASS))
        return cls(Record.from_dict(value["record"]), value["tar"], value["row"], stats, classes)


@dataclass(frozen=True)
class OpenedImage:
    """An item after reading, decoding and preprocessing.

    square u8[S,S] and geometry: None where there is nothing to predict; the record gives the reason. references: the
    upright reference mask at native size of each class that the image annotates, as COCO RLE. seconds: time that
    opening took.
    """

    record: Record
    square: U8 | None = None
    geometry: Geometry | None = None
    references: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        """Serialize everything except the square."""
        geometry = self.geometry and asdict(self.geometry)
        values = {"record": self.record.to_dict(), "geometry": geometry, "references": self.references}
        return json.dumps({**values, "seconds": self.seconds})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Restore the output of `to_json`."""
        values = json.loads(text)
        geometry = values["geometry"] and Geometry(**values["geometry"])
        return cls(Record.from_dict(values["record"]), None, geometry, values["references"], values["seconds"])


@dataclass(frozen=True)
class PredictOptions:
    """Device, precision, test-time augmentation and backend. precision auto: bf16 or fp16 on a GPU, fp32 on a CPU.

    backend: as of `choose_backend`. custom_network: the network of the user's own code that checkpoints may name,
    written as `package.module:Name`.
    """

    device: str = "cpu"
    precision: Precision = "auto"
    tta: Tta = "none"
    custom_network: str = ""
    backend: Backend = "torch"


@dataclass(frozen=True)
class Prediction:
    """Prediction of one square.

    probability: f32[K,S,S] of K classes, the mean of `models` models. seen_in_training: these models were trained on
    this image. seconds: share of the time of the batch.
    """

    probability: F32
    models: int
    seen_in_training: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class PredictedImage:
    """levels: u16[K,S,S] as bytes, as of `to_levels`. details: JSON of the other fields of a Prediction."""

    levels: bytes
    details: str


def to_levels(probability: F32) -> NDArray[np.uint16]:
    """Round probabilities f32 in [0,1] to u16, 65535 for 1: half the bytes; at most a few pixels of a mask change."""
    levels: NDArray[np.uint16] = np.rint(probability * np.float32(LEVELS)).astype(np.uint16)
    return levels


def from_levels(levels: NDArray[np.uint16]) -> F32:
    """Return the probabilities f32 of the output of `to_levels`."""
    probability: F32 = levels.astype(np.float32) / np.float32(LEVELS)
    return probability


def open_item(item: Item, preprocess: PreprocessSettings, key: bytes | None = None) -> OpenedImage:
    """Read, check and preprocess one item. Problems end in the record's status, codes and message.

    key: for pseudonyms of DICOM patient ids.
    """
    began = time.perf_counter()
    opened = (
        open_image(item, preprocess, key, storage.read_bytes)[0] if item.row is None else _open_sample(item, preprocess)
    )
    return replace(opened, seconds=time.perf_counter() - began)


def open_image(
    item: Item, preprocess: PreprocessSettings, key: bytes | None, read: ReadFile
) -> tuple[OpenedImage, Grey | None]:
    """Open an item of image files as `open_item` does; return also the upright image at stored depth, if it is usable.

    read: returns the content of a file.
    """
    changed: list[str] = []
    compared = preprocess.model_copy(update={"classes": compared_classes(preprocess.classes)})
    reader = _reader(item, read, changed)
    record, image, masks = record_checks.open_with_usable_masks(item.record, compared, key, reader)
    if changed:
        return OpenedImage(reject(record, Note("changed", changed[0]))), None
    if image is None:
        return OpenedImage(record), None
    square, geometry = prepare_image(image, preprocess, record.orientation)
    references = {} if masks is None else annotated_masks(masks, compared.classes)
    return OpenedImage(record, square, geometry, _encode(references)), image


def _reader(item: Item, read_bytes: ReadFile, changed: list[str]) -> ReadFile:
    """Return a function that reads a file, and adds a message to `changed` if it is not the file that was planned."""
    planned = dict(zip(item.files(), item.stats, strict=False))

    def read(uri: str) -> bytes:
        before = planned.get(uri)
        content = read_bytes(uri)
        if uri not in planned:
            return content
        # In a bucket, the time of change would need another request.
        now = (len(content), before[1]) if before and "://" in uri else storage.try_stat(uri)
        if now != before:
            earlier = f"had {before[0]} bytes" if before else "did not exist"
            same_size = before is not None and before[0] == len(content)
            current = "has been overwritten since" if same_size else f"has {len(content)} bytes now"
            changed.append(f"{uri} {earlier} when the job was planned and {current}: {_ADVICE}")
        return content

    return read


def _open_sample(item: Item, preprocess: PreprocessSettings) -> OpenedImage:
    assert item.row is not None, "only called for samples"
    compared = compared_classes(preprocess.classes)
    try:
        sample = sample_reader.read_sample(item.tar, item.row, Classes(item.classes, compared))
    except InputError as error:
        return OpenedImage(reject(item.record, Note("shard", str(error))))
    geometry = sample.geometry
    height, width = geometry.stored_shape()
    record = replace(item.record, height=height, width=width, orientation=geometry.orientation)
    if geometry.orientation != UPRIGHT:
        note = orientation_note(f"the tag of the file that {record.image_id} was prepared from", geometry.orientation)
        record = replace(with_notes(record, [note]), status="repaired")
    return OpenedImage(record, sample.image, geometry, _encode(native_masks(sample, compared)))


def _encode(masks: dict[str, U8]) -> dict[str, str]:
    return {name: codecs.encode_rle(mask) for name, mask in masks.items()}


def prepared_item(folder: str, row: Row, stat: Stat = None, classes: tuple[str, ...] = ONE_CLASS) -> Item:
    """Create an item from an index row of a prepared dataset with these classes."""
    tar = storage.join(folder, f"{row['shard']}.tar")
    ids = {name: row[name] for name in ("image_id", "dataset", "patient_id", "finding", "pixel_digest")}
    record = Record(image_uri=f"{tar}#{row['image_id']}", flags=tuple(row["flags"]), **ids)
    return Item(record, tar, row, (stat,), classes)


def with_stats(items: Sequence[Item], stats: dict[str, Stat]) -> list[Item]:
    """Set the stats of each item."""
    return [replace(item, stats=tuple(stats[uri] for uri in item.files())) for item in items]
