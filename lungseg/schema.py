"""Data types and file columns that the stages share, and the number of the file schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lungseg import __version__
from lungseg.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 6
"""Number of the file schema. Every file carries it, and readers refuse other numbers."""

_LAST_UNNAMED = 4  # files up to this schema do not say which version of lungseg wrote them
_METADATA = {"lungseg.schema": str(SCHEMA), "lungseg.version": __version__}

Status = Literal["ok", "repaired", "rejected", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "repaired", "rejected", "failed")
USABLE: tuple[Status, ...] = ("ok", "repaired")


def check_schema(number: Any, path: str, version: str = "") -> None:
    """Refuse a file that another schema wrote; `version` is the lungseg version in the file, where it has one.

    Raises:
        InputError: `number` is not SCHEMA.

    """
    if number == SCHEMA:
        return
    is_old = isinstance(number, int) and 0 < number <= _LAST_UNNAMED
    writer = f"lungseg {version}" if version else "lungseg 0.1.0 or older" if is_old else "an unknown version"
    raise InputError(
        f"{path}: schema {number}, written by {writer}; this version ({__version__}) reads schema {SCHEMA}: run the "
        "job that wrote the file again, or install the version that wrote it"
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One X-ray of an archive.

    `status` is ok for an image that was read and whose mask fits, repaired after a safe correction; other images cannot
    be used. `codes` are reason codes (`lungseg.ingest.reason_codes`): why the image cannot be used, then the repairs.
    `message` has their sentences for a reader. `flags` are codes of what is unusual about an image that can be used.
    `height` and `width` are those of the stored pixels, in px; 0 while unknown. `orientation` is the orientation of the
    stored pixels, 1 to 8 as in EXIF; everything after decoding works on the upright picture. `pixel_digest` covers the
    grey values and the size of the upright image, not the bytes of its file; `phash` is its perceptual hash, 64
    hexadecimal digits. `mask_uris` are the mask files and `mask_classes` their classes, one for each file (left and
    right lung are two files of the class lung). `mask_values` are the grey values that mean this class, such as `1,2`,
    one entry for each mask file; without them the mask's own grey values decide. `mask_area` is the share of the image
    that the lungs cover. `fold` is the fold that the archive gives, or -1 for an image to train on in every fold.
    `age_group` covers ten years, such as 40-49, or is 90+.
    """

    image_id: str
    dataset: str
    image_uri: str
    mask_uris: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    patient_id: str = ""
    finding: str | None = None
    age_group: str | None = None
    sex: str | None = None
    view: str | None = None
    spacing_mm: float | None = None
    manufacturer_model: str | None = None
    pixel_digest: str = ""
    phash: str = ""
    height: int = 0
    width: int = 0
    orientation: int = 1
    mask_area: float | None = None
    status: Status = "ok"
    codes: tuple[str, ...] = ()
    message: str = ""
    flags: tuple[str, ...] = ()
    mask_values: tuple[str, ...] = ()
    fold: int | None = None

    @property
    def usable(self) -> bool:
        """Return whether the image can be prepared and predicted."""
        return self.status in USABLE

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for a table row or JSON; ten times as fast as `asdict`, which copies."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Build a record from a table row or from JSON, where tuples are lists."""
        lists = ("mask_uris", "mask_classes", "mask_values", "codes", "flags")
        return cls(**{**values, **{name: tuple(values[name]) for name in lists}})


MANIFEST = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("image_uri", pa.string()),
        ("mask_uris", pa.list_(pa.string())),
        ("mask_classes", pa.list_(pa.string())),
        ("patient_id", pa.string()),
        ("finding", pa.string()),
        ("age_group", pa.string()),
        ("sex", pa.string()),
        ("view", pa.string()),
        ("spacing_mm", pa.float64()),
        ("manufacturer_model", pa.string()),
        ("pixel_digest", pa.string()),
        ("phash", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("orientation", pa.int32()),
        ("mask_area", pa.float64()),
        ("status", pa.string()),
        ("codes", pa.list_(pa.string())),
        ("message", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("mask_values", pa.list_(pa.string())),
        ("fold", pa.int32()),
    ],
    metadata=_METADATA,
)
"""One row for each input of prepare, whatever its status: the fields of Record."""

INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("patient_id", pa.string()),
        ("finding", pa.string()),
        ("pixel_digest", pa.string()),
        ("phash", pa.string()),
        ("fold", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("shard", pa.string()),
        *(
            (f"{member}_{field}", pa.int64())
            for member in ("image", "mask", "json")
            for field in ("offset", "size", "crc32")
        ),
    ],
    # Without the version: the digest of a dataset covers these bytes, and runs are named after it.
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""Offsets and sizes in bytes of each sample's members in its tar, and their CRC-32; mask_size is 0 without a mask."""


@dataclass(frozen=True)
class Geometry:
    """Transform from a native image to a square and back: resize to (resized_*), then place at (top, left).

    All values in px, except `orientation`: that of the pixels in the file, 1 to 8 as in EXIF. native_height and
    native_width are those of the upright picture. With `pad` the resized image is inside the square, top and left are 0
    or more. With `crop` it extends beyond the square, top and left are 0 or less, and the pixels outside the square are
    lost.
    """

    native_height: int
    native_width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    size: int
    orientation: int = 1

    def stored_shape(self) -> tuple[int, int]:
        """Return height and width of the pixels in the file; orientations from 5 exchange them."""
        shape = (self.native_height, self.native_width)
        return shape[::-1] if self.orientation >= 5 else shape

    def content(self) -> tuple[slice, slice]:
        """Return the rows and columns of the square that show the image, not padding."""
        rows = slice(max(self.top, 0), min(self.top + self.resized_height, self.size))
        columns = slice(max(self.left, 0), min(self.left + self.resized_width, self.size))
        return rows, columns


@dataclass(frozen=True)
class Sample:
    """One prepared X-ray: image u8[S,S] in 0..255, mask u8[S,S] in {0..classes} or None, and where it comes from."""

    image_id: str
    dataset: str
    patient_id: str
    finding: str | None
    pixel_digest: str
    geometry: Geometry
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Counts:
    """Confusion matrix of one image in pixels; padding is not counted."""

    tp: int
    fp: int
    fn: int
    tn: int


_Columns = tuple[tuple[str, pa.DataType, str], ...]


def _described(columns: _Columns) -> pa.Schema:
    """Return a schema whose fields carry their descriptions."""
    fields = [pa.field(name, kind, metadata={"description": description}) for name, kind, description in columns]
    return pa.schema(fields, metadata=_METADATA)


_TESTED: _Columns = (
    ("run", pa.string(), "name of the run that was tested"),
    ("image_id", pa.string(), "id of the image, unique in its dataset"),
    ("dataset", pa.string(), "name of the dataset of the image"),
    ("patient_id", pa.string(), "id of the patient, a pseudonym for DICOM; the image id where no patient is named"),
    ("group", pa.string(), "equal for images of one patient and for images that the leakage audit linked"),
    ("role", pa.string(), "held-out: patient of a training dataset, not trained on; cross: image of another dataset"),
    ("tp", pa.int64(), "true positive pixels at native size"),
    ("fp", pa.int64(), "false positive pixels at native size"),
    ("fn", pa.int64(), "false negative pixels at native size"),
    ("tn", pa.int64(), "true negative pixels at native size"),
    ("dice", pa.float64(), "Dice with the reference mask at native size"),
    ("iou", pa.float64(), "IoU with the reference mask at native size"),
    ("pixel_accuracy", pa.float64(), "share of pixels equal to the reference mask"),
    (
        "sensitivity",
        pa.float64(),
        "share of the reference mask that the prediction covers; null where only the reference is empty",
    ),
    (
        "precision",
        pa.float64(),
        "share of the predicted mask inside the reference mask; 0 where only the prediction is empty",
    ),
    ("hd95_px", pa.float64(), "95th percentile of the distances between the borders, px; null where a mask is empty"),
    ("assd_px", pa.float64(), "mean distance between the borders, px; null where a mask is empty"),
)

TEST_ROWS = _described(_TESTED)
"""One row for each image that a run was tested on, at native size: tested.parquet."""

STUDY_ROWS = _described(
    (
        *_TESTED,
        ("protocol", pa.string(), "pooled, source-to-source or leave-one-dataset-out"),
        ("train_on", pa.string(), "names of the training datasets, joined by +"),
        ("fold", pa.int32(), "held-out fold of the run"),
        ("seed", pa.int32(), "seed of the training"),
        ("finding", pa.string(), "finding of the image, as the archive states it; null: unknown"),
        ("age_group", pa.string(), "age of the patient in steps of ten years, such as 40-49, or 90+; null: unknown"),
        ("sex", pa.string(), "sex of the patient; null: unknown"),
    )
)
"""One row for each image and run of a study: study.parquet."""

_PREDICTED: _Columns = (
    ("image_id", pa.string(), "id of the image, unique in its dataset"),
    ("dataset", pa.string(), "name of the dataset"),
    (
        "patient_id",
        pa.string(),
        "id of the patient; DICOM: a pseudonym, empty without a key; other files: the image id if no patient is named",
    ),
    ("source_uri", pa.string(), "image file, or TAR#image_id for prepared data"),
    ("mask_uris", pa.list_(pa.string()), "files of the reference masks"),
    (
        "mask_values",
        pa.list_(pa.string()),
        "grey values that mean lung in each of these files, such as 1,2; empty: any",
    ),
    ("status", pa.string(), "ok or repaired: predicted; rejected or failed: not predicted, see codes and message"),
    (
        "codes",
        pa.list_(pa.string()),
        "reason codes: why it was not predicted, what was repaired, or why its reference is not used",
    ),
    ("message", pa.string(), "the sentences for these codes; empty without codes"),
    (
        "flags",
        pa.list_(pa.string()),
        "what is unusual about the image or its masks: look at it before you use the mask",
    ),
    ("height", pa.int32(), "native height of the stored pixels, without regard to an orientation tag, px"),
    ("width", pa.int32(), "native width of the stored pixels, px"),
    ("mask", pa.string(), "lung mask as COCO RLE counts (column-major, ASCII) at height x width; null: not predicted"),
    ("threshold", pa.float32(), "pixels with at least this probability are lung"),
    ("mean_probability", pa.float64(), "mean probability of the lung pixels before post-processing; null without any"),
    ("border_entropy", pa.float64(), "mean binary entropy along the mask border, bits: 0 certain, 1 undecided"),
    ("area_px", pa.int64(), "pixels of the mask"),
    ("right_lung_px", pa.int64(), "pixels of the patient's right lung, on the left of the upright image"),
    ("left_lung_px", pa.int64(), "pixels of the patient's left lung, on the right of the upright image"),
    ("centroid_x_px", pa.float64(), "mean column of the mask; null for an empty mask"),
    ("centroid_y_px", pa.float64(), "mean row of the mask; null for an empty mask"),
    ("bbox", pa.list_(pa.int32()), "bounding box: x, y, width, height, px; empty for an empty mask"),
    ("components", pa.int32(), "connected components of the mask, with diagonal neighbours"),
    ("components_before", pa.int32(), "connected components before post-processing"),
    ("removed_px", pa.int64(), "pixels that post-processing removed"),
    ("added_px", pa.int64(), "pixels that post-processing added"),
    ("iou", pa.float64(), "IoU with the reference mask at native size; null without a reference"),
    ("dice", pa.float64(), "Dice with the reference mask at native size; null without a reference"),
    ("pixel_accuracy", pa.float64(), "share of pixels equal to the reference mask; null without a reference"),
    ("hd95_px", pa.float64(), "95th percentile of the distances between the borders, px; null where a mask is empty"),
    ("assd_px", pa.float64(), "mean distance between the borders, px; null where a mask is empty"),
    ("seen_in_training", pa.bool_(), "true: all models were trained on this image; else models that were are not used"),
    ("models", pa.int32(), "number of models whose mean is the probability"),
    ("model", pa.string(), "digest of the weights of all models"),
    (
        "geometry",
        pa.string(),
        "JSON: how the upright image was resized and placed in the square of the model; the orientation of its file",
    ),
    ("seconds", pa.float64(), "time for this image in all stages, s"),
)

PREDICTIONS = _described(_PREDICTED)
"""One row for each input of infer. The files have the description of each column in its metadata.

Masks are compared at native size; the reference of prepared data is restored from the prepared square.
"""


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table with the columns of a schema.

    Raises:
        KeyError: a row lacks a column; this is a bug.

    """
    return pa.table(
        {name: pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names}, schema
    )


def is_superseded(run_state: dict[str, Any]) -> bool:
    """Return whether a run of study.json was finished with other settings or data, so that it is not in the results."""
    return run_state.get("state") == "finished" and not run_state.get("in_results", True)
