"""Data types and file columns that the stages share, and the number of the file schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lungseg import __version__
from lungseg.arrow import pa
from lungseg.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 6
"""Number of the file schema. Every file carries it, and readers refuse other numbers."""

_LAST_UNNAMED = 4  # files up to this schema do not say which version of lungseg wrote them
METADATA = {"lungseg.schema": str(SCHEMA), "lungseg.version": __version__}
"""Metadata of every Parquet file."""

Status = Literal["ok", "repaired", "rejected", "failed"]
NOT_ANNOTATED = 255
"""Value of all pixels of a mask whose class is not annotated in its image: unknown, which is not the same as empty."""

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
    metadata=METADATA,
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
    """One prepared X-ray: image u8[S,S] in 0..255, its masks u8[K,S,S] or None, and where it comes from.

    A mask of a class is in {0,1}, or NOT_ANNOTATED everywhere. Masks of two classes may overlap.
    """

    image_id: str
    dataset: str
    patient_id: str
    finding: str | None
    pixel_digest: str
    geometry: Geometry
    image: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None


def is_annotated(mask: NDArray[np.uint8]) -> bool:
    """Return whether the class of a mask u8[H,W] is annotated in its image."""
    return bool(mask[0, 0] != NOT_ANNOTATED)


@dataclass(frozen=True)
class Counts:
    """Confusion matrix of one image in pixels; padding is not counted."""

    tp: int
    fp: int
    fn: int
    tn: int


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
