"""What travels between the stages: plain frozen data, the columns of the files, and the schema's number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lungseg.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 4
"""Number of this schema; every file carries it, and a reader refuses one that it does not know."""

Status = Literal["ok", "repaired", "rejected", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "repaired", "rejected", "failed")
USABLE: tuple[Status, ...] = ("ok", "repaired")


def check_schema(found: Any, where: str) -> None:
    """Refuse a file of another schema than this version's.

    Raises:
        InputError: `found` is not SCHEMA.

    """
    if found != SCHEMA:
        raise InputError(
            f"{where}: schema {found}, this lungseg reads schema {SCHEMA}: make it again, or change version"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One X-ray of an archive, as found and then as checked.

    `status` is ok once it was read and fits its mask, repaired when that took a safe change; else it cannot be used.
    `reason` holds what was repaired or what is wrong, each as `code: sentence`, ` | ` between. `flags` are codes of
    what is odd about a usable one. `height` and `width` are native, px; 0 while unknown. `pixel_digest` is of the
    image's grey values and size, not of its file's bytes; `phash` is its perceptual hash, 64 hex digits. `mask_uris`
    are its mask files and `mask_classes` their classes, one each (left and right lung are two files of the class lung).
    `mask_area` is the lungs' share of the picture. `age_group` is ten years wide, as 40-49, or 90+.
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
    mask_area: float | None = None
    status: Status = "ok"
    reason: str = ""
    flags: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it can be prepared and predicted."""
        return self.status in USABLE

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, for a table's row or JSON; `asdict` copies each and takes ten times as long."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """Build a record from a table's row or from JSON, where tuples are lists."""
        lists = ("mask_uris", "mask_classes", "flags")
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
        ("mask_area", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.list_(pa.string())),
    ],
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""One row an input of prepare, whatever became of it: the fields of Record."""

INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("patient_id", pa.string()),
        ("finding", pa.string()),
        ("pixel_digest", pa.string()),
        ("phash", pa.string()),
        ("shard", pa.string()),
        *(
            (f"{member}_{part}", pa.int64())
            for member in ("image", "mask", "json")
            for part in ("offset", "size", "crc32")
        ),
    ],
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""Where each sample's members lie in its tar, in bytes, and their CRC-32; mask_size is 0 where there is no mask."""


@dataclass(frozen=True)
class Geometry:
    """The way from a native picture to a square and back: resize to (resized_*), then place at (top, left).

    All in px. With `pad` the resized picture lies inside the square, top and left are 0 or more; with `crop` it
    reaches over the square's edges, top and left are 0 or less, and what lies outside is lost.
    """

    native_height: int
    native_width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    size: int

    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the square that show the picture, not padding."""
        rows = slice(max(self.top, 0), min(self.top + self.resized_height, self.size))
        columns = slice(max(self.left, 0), min(self.left + self.resized_width, self.size))
        return rows, columns


@dataclass(frozen=True)
class Sample:
    """One prepared X-ray: image u8[S,S] in 0..255, mask u8[S,S] in {0..classes} or None, and its origin."""

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
    """Pixels of one image by truth and prediction, over the picture itself (padding is not counted)."""

    tp: int
    fp: int
    fn: int
    tn: int


TEST_ROWS = pa.schema(
    [
        ("run", pa.string()),
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("patient_id", pa.string()),
        ("group", pa.string()),
        ("role", pa.string()),
        *((name, pa.int64()) for name in ("tp", "fp", "fn", "tn")),
        *((name, pa.float64()) for name in ("dice", "iou", "pixel_accuracy", "sensitivity", "precision")),
        *((name, pa.float64()) for name in ("hd95_px", "assd_px")),
    ],
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""One row an image that a run was tested on, at native size; role is held-out or cross. Null where not defined.

group: the same for images of one patient, of one picture, or that the leakage audit linked.
"""

STUDY_ROWS = pa.schema(
    [*TEST_ROWS, ("protocol", pa.string()), ("train_on", pa.string()), ("fold", pa.int32())],
    metadata=TEST_ROWS.metadata,
)
"""One row an image and run of a study: TEST_ROWS, and who was trained on whom; train_on: data sets, joined by +."""

_PREDICTED: tuple[tuple[str, pa.DataType, str], ...] = (
    ("image_id", pa.string(), "the image's name in its data set"),
    ("dataset", pa.string(), "its data set"),
    ("patient_id", pa.string(), "whose it is; of DICOM a pseudonym; the image's id where nobody is named"),
    ("source_uri", pa.string(), "its file, or TAR#image_id for prepared data"),
    ("mask_uris", pa.list_(pa.string()), "files of its reference masks"),
    ("status", pa.string(), "ok or repaired: it was predicted; rejected or failed: error says why not"),
    ("error", pa.string(), "code: sentence; of a predicted image what was repaired, or why its reference is not used"),
    ("height", pa.int32(), "native px"),
    ("width", pa.int32(), "native px"),
    ("mask", pa.string(), "the lungs: COCO RLE counts (column-major, ASCII) at height x width; null: not predicted"),
    ("threshold", pa.float32(), "probability from which a pixel is lung"),
    ("mean_probability", pa.float64(), "mean over the lung's pixels before post-processing; null where there are none"),
    ("border_entropy", pa.float64(), "mean binary entropy along the border, bits: 0 sure, 1 undecided"),
    ("area_px", pa.int64(), "pixels of the mask"),
    ("right_lung_px", pa.int64(), "of these the patient's right lung, on the picture's left"),
    ("left_lung_px", pa.int64(), "and the left one"),
    ("centroid_x_px", pa.float64(), "mean column of the mask; null where it is empty"),
    ("centroid_y_px", pa.float64(), "mean row of the mask"),
    ("bbox", pa.list_(pa.int32()), "x, y, width, height, px; empty where the mask is"),
    ("components", pa.int32(), "parts of the mask, diagonal neighbours joined"),
    ("components_before", pa.int32(), "parts before post-processing"),
    ("removed_px", pa.int64(), "pixels that post-processing took away"),
    ("added_px", pa.int64(), "pixels that it added"),
    ("iou", pa.float64(), "against the reference mask, at native size; null without one"),
    ("dice", pa.float64(), "likewise"),
    ("pixel_accuracy", pa.float64(), "likewise"),
    ("hd95_px", pa.float64(), "95th percentile of the distances between the borders, px; null where one is empty"),
    ("assd_px", pa.float64(), "mean of the distances between the borders, px; null where one is empty"),
    (
        "seen_in_training",
        pa.bool_(),
        "whether every model was trained on this picture; else those that were are left out",
    ),
    ("models", pa.int32(), "models that the probability is the mean of"),
    ("model", pa.string(), "digest of all models' weights"),
    ("geometry", pa.string(), "JSON: how the picture was resized and placed in the square that the model saw"),
    ("seconds", pa.float64(), "time taken for this image in all stages"),
)

PREDICTIONS = pa.schema(
    [pa.field(name, kind, metadata={"description": said}) for name, kind, said in _PREDICTED],
    metadata={"lungseg.schema": str(SCHEMA)},
)
"""One row an input of infer; each column's description is in its metadata, in the files too.

For prepared data both masks are compared at native size, the reference brought back from the prepared square.
"""


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of exactly the schema's columns; a row that lacks one is a bug and raises KeyError."""
    return pa.table(
        {name: pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names}, schema
    )
