"""What is to be predicted, what became of reading it, and what models say of it; without torch."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import Precision, PreprocessSettings, Tta
from lungseg.dataset import sample_reader
from lungseg.errors import InputError
from lungseg.imaging import codecs
from lungseg.imaging.geometry import prepare_image, restore
from lungseg.ingest import record_checks
from lungseg.ingest.reason_codes import Note, reject
from lungseg.schema import Geometry, Record

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Stat = tuple[int, int] | None

_MEND = "put it back, or predict the archive as it is now into another --out"


@dataclass(frozen=True)
class Item:
    """One image to predict: a record whose files are read, or a sample in a tar, with its index row.

    stats: size in bytes and time of change of each of `files()` when the job was planned; None: not there.
    """

    record: Record
    tar: str = ""
    row: dict[str, Any] | None = None
    stats: tuple[Stat, ...] = ()

    def files(self) -> tuple[str, ...]:
        """Name the files that it is read from."""
        return (self.tar,) if self.tar else (self.record.image_uri, *self.record.mask_uris)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, as JSON takes them."""
        return {"record": self.record.to_dict(), "tar": self.tar, "row": self.row, "stats": self.stats}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Make an item of what `to_dict` and JSON made of one."""
        stats = tuple(None if found is None else (found[0], found[1]) for found in value["stats"])
        return cls(Record.from_dict(value["record"]), value["tar"], value["row"], stats)


@dataclass(frozen=True)
class OpenedImage:
    """An item that was read.

    square u8[S,S] and geometry: None where there is nothing to predict, and the record says why. reference: its
    reference mask at native size as COCO RLE, or None. seconds: that reading, decoding and preparing took.
    """

    record: Record
    square: U8 | None = None
    geometry: Geometry | None = None
    reference: str | None = None
    seconds: float = 0.0

    def to_json(self) -> str:
        """Write everything but the square."""
        geometry = self.geometry and asdict(self.geometry)
        values = {"record": self.record.to_dict(), "geometry": geometry, "reference": self.reference}
        return json.dumps({**values, "seconds": self.seconds})

    @classmethod
    def from_json(cls, text: str, square: U8 | None = None) -> Self:
        """Read what `to_json` wrote."""
        found = json.loads(text)
        geometry = found["geometry"] and Geometry(**found["geometry"])
        return cls(Record.from_dict(found["record"]), square, geometry, found["reference"], found["seconds"])


@dataclass(frozen=True)
class PredictOptions:
    """How a model computes. precision: auto is bf16 or fp16 on a GPU, fp32 on a CPU."""

    device: str = "cpu"
    precision: Precision = "auto"
    tta: Tta = "none"


@dataclass(frozen=True)
class Prediction:
    """What models say of one square.

    probability f32[S,S]; models: how many it is the mean of; seen: whether these were trained on this picture;
    seconds: its share of the time of its batch.
    """

    probability: F32
    models: int
    seen_in_training: bool
    seconds: float = 0.0


def open_item(item: Item, preprocess: PreprocessSettings, key: bytes | None = None) -> OpenedImage:
    """Read one item, check and prepare it; whatever is wrong with it ends in the record's status, codes and message.

    key: turns DICOM patient ids into pseudonyms.
    """
    began = time.perf_counter()
    opened = _open_record(item, preprocess, key) if item.row is None else _open_sample(item)
    return replace(opened, seconds=time.perf_counter() - began)


def _open_record(item: Item, preprocess: PreprocessSettings, key: bytes | None) -> OpenedImage:
    changed: list[str] = []
    read = _reader(item, changed)
    lungs = preprocess.model_copy(update={"classes": ("lung",)})  # all that a prediction is compared with
    record, image, mask = record_checks.open_record(item.record, lungs, key=key, read=read)
    if changed:
        return OpenedImage(reject(record, Note("changed", changed[0])))
    if image is None:
        return OpenedImage(record)
    square, geometry = prepare_image(image, preprocess)
    return OpenedImage(record, square, geometry, None if mask is None else codecs.encode_rle(mask))


def _reader(item: Item, changed: list[str]) -> Callable[[str], bytes]:
    """Make a function that reads a file and notes where it is not the one that the job was planned with."""
    planned = dict(zip(item.files(), item.stats, strict=False))

    def read(uri: str) -> bytes:
        before = planned.get(uri)
        content = storage.read_bytes(uri)
        # To ask a bucket for the time of change is a request more, of an object that is replaced whole.
        now = (len(content), before[1]) if before and "://" in uri else storage.try_stat(uri)
        if uri in planned and now != before:
            was = f"of {before[0]} bytes" if before else "not there"
            how = "was written anew" if before and before[0] == len(content) else f"is of {len(content)} bytes"
            changed.append(f"{uri} was {was} when the job was planned and {how}: {_MEND}")
        return content

    return read


def _open_sample(item: Item) -> OpenedImage:
    assert item.row is not None, "the caller looked"
    try:
        sample = sample_reader.read_sample(item.tar, item.row)
    except InputError as error:
        return OpenedImage(reject(item.record, Note("shard", str(error))))
    geometry = sample.geometry
    record = replace(item.record, height=geometry.native_height, width=geometry.native_width)
    reference = (
        None if sample.mask is None else codecs.encode_rle(_native((sample.mask == 1).astype(np.uint8), geometry))
    )
    return OpenedImage(record, sample.image, geometry, reference)


def _native(mask: U8, geometry: Geometry) -> U8:
    return (restore(mask.astype(np.float32), geometry) >= 0.5).astype(np.uint8)


def prepared_item(folder: str, row: dict[str, Any], stat: Stat = None) -> Item:
    """Make an item of a row of the index of a prepared data set."""
    tar = storage.join(folder, f"{row['shard']}.tar")
    ids = {name: row[name] for name in ("image_id", "dataset", "patient_id", "finding", "pixel_digest")}
    return Item(Record(image_uri=f"{tar}#{row['image_id']}", **ids), tar, row, (stat,))


def with_stats(items: Sequence[Item], stats: dict[str, Stat]) -> list[Item]:
    """Note in each item what its files were like when the job was planned."""
    return [replace(item, stats=tuple(stats[uri] for uri in item.files())) for item in items]
