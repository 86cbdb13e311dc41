"""From items of an archive to rows of predictions, in one process: read, prepare, predict, compare, encode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.data import images, manifest, shards
from lungseg.data.preprocess import prepare_image, restore
from lungseg.engine import checkpoint
from lungseg.engine.predictor import Predictor
from lungseg.errors import InputError
from lungseg.model import metrics, postprocess
from lungseg.schema import PREDICTIONS, Geometry, Record

U8 = NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One image to predict: a record whose files are read, or a sample in a tar, with its index row."""

    record: Record
    tar: str = ""
    row: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """Make an item of what `asdict` and JSON made of one."""
        record = value["record"]
        return cls(Record.from_dict(record), value["tar"], value["row"])


@dataclass(frozen=True)
class _Opened:
    """An item that was read: its prepared square u8[S,S], and its reference mask u8[H,W] at native size or None."""

    record: Record
    square: U8
    geometry: Geometry
    reference: U8 | None


class Segmenter:
    """Loads a model once and turns items into rows, one a row, whatever is wrong with an item."""

    def __init__(self, folder: str, device: str, settings: InferSettings, key: bytes | None = None) -> None:
        found = checkpoint.verify(folder)
        self._settings = settings
        self._key = key
        self._preprocess = found.preprocess
        self._digest = found.digest
        self._trained_on = checkpoint.trained_on(found)
        self._predictor = Predictor(found, device, settings.threshold)

    def __call__(self, items: Sequence[Item]) -> list[Row]:
        """Make one row an item, in their order, of PREDICTIONS' columns."""
        rows: list[Row] = []
        for start in range(0, len(items), self._settings.batch):
            opened = [self._open(item) for item in items[start : start + self._settings.batch]]
            good = [one for one in opened if isinstance(one, _Opened)]
            masks = iter(self._predictor([one.square for one in good], [one.geometry for one in good]) if good else [])
            rows += [self._row(one, next(masks)) if isinstance(one, _Opened) else self._no_mask(one) for one in opened]
        return rows

    def _open(self, item: Item) -> _Opened | Record:
        """Read one item; the record alone where there is nothing to predict."""
        if item.row is not None:
            return _open_sample(item)
        record, image, mask = manifest.open_record(item.record, self._preprocess, key=self._key)
        if image is None:
            return record
        square, geometry = prepare_image(image, self._preprocess)
        return _Opened(record, square, geometry, mask)

    def _row(self, opened: _Opened, mask: U8) -> Row:
        if self._settings.postprocess == "lungs":
            mask = postprocess.keep_lungs(mask)
        return {
            **_ids(opened.record),
            **_compare(mask, opened.reference),
            # A reference mask that cannot be used does not keep its image from being predicted.
            "status": opened.record.status if opened.record.usable else "ok",
            "error": opened.record.reason,
            "mask": images.encode_rle(mask),
            "area_px": int(np.count_nonzero(mask)),
            "components": postprocess.components(mask),
            "seen_in_training": opened.record.sha256 in self._trained_on,
            "threshold": self._settings.threshold,
            "model": self._digest,
        }

    def _no_mask(self, record: Record) -> Row:
        empty = dict.fromkeys(PREDICTIONS.names)
        said = {"status": record.status, "error": record.reason, "threshold": self._settings.threshold}
        return {**empty, **_ids(record), **said, "model": self._digest}


def _open_sample(item: Item) -> _Opened | Record:
    assert item.row is not None, "the caller looked"
    try:
        members = {name: storage.read_range(item.tar, *where) for name, where in shards.member_ranges(item.row).items()}
        shards.check_members(item.row, members, item.record.image_uri)
        sample = shards.to_sample(members, item.record.image_uri)
    except InputError as error:
        return replace(item.record, status="failed", reason=f"shard: {error}")
    geometry = sample.geometry
    record = replace(item.record, height=geometry.native_height, width=geometry.native_width)
    reference = (
        None if sample.mask is None else (restore(sample.mask.astype(np.float32), geometry) >= 0.5).astype(np.uint8)
    )
    return _Opened(record, sample.image, geometry, reference)


def _ids(record: Record) -> Row:
    names = ("image_id", "dataset", "patient_id", "height", "width")
    values = {name: getattr(record, name) for name in names}
    return {**values, "source_uri": record.image_uri, "mask_uris": list(record.mask_uris)}


def _compare(mask: U8, reference: U8 | None) -> Row:
    names = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")
    if reference is None:
        return dict.fromkeys(names)
    counts = metrics.count_pixels(mask, reference)
    hd95, assd = metrics.surface_distances(mask, reference)
    values = (metrics.iou(counts), metrics.dice(counts), metrics.pixel_accuracy(counts), hd95, assd)
    return dict(zip(names, values, strict=True))
