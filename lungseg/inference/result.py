"""The result of segmenting one X-ray in this process: masks, probabilities, checks and areas."""

import functools
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lungseg import storage
from lungseg.arrays import F32, U8, Grey, Row
from lungseg.config.class_names import LUNG, LUNG_SIDES, LUNGS, ONE_CLASS, lung_parts
from lungseg.errors import ImageError, InputError, SettingsError
from lungseg.imaging import codecs
from lungseg.imaging.dicom.segmentation import encode_segmentation
from lungseg.imaging.geometry import restore
from lungseg.imaging.intensity import normalise
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.orientation import to_stored, to_upright
from lungseg.imaging.overlay import colours_of, draw_outlines
from lungseg.ingest.reason_codes import REGISTRY
from lungseg.predictions.class_masks import read_class_masks
from lungseg.predictions.ranking import require_reliable
from lungseg.schema import USABLE, Geometry

FileKind = Literal["mask", "overlay", "dicom-seg"]
_LUNG_AREAS = {"right": "right_lung_px", "left": "left_lung_px", "both": "area_px"}
_SUFFIXES: dict[FileKind, str] = {"mask": ".mask.png", "overlay": ".overlay.png", "dicom-seg": ".seg.dcm"}


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """One segmented X-ray.

    row: its row of PREDICTIONS. image: u8 or u16[H,W], upright, with light bones. upright_mask: u8[H,W] in {0,1}, of
    both lungs, None if the model does not segment them. squares: probabilities f32[K,S,S] of the model's classes in its
    square, placed as `geometry` states. These four are None for a rejected image. file: path or bytes of the image's
    file, None if the image was passed as pixels. max_doubt: the highest usual doubt of the list that the image was in,
    None for a single image. classes: of the model.

    Masks and probabilities have the size and orientation of the stored pixels. Those of a rejected image raise an
    ImageError, which is an InputError.
    """

    row: Row
    image: Grey | None = None
    upright_mask: U8 | None = None
    squares: F32 | None = None
    geometry: Geometry | None = None
    file: str | bytes | None = None
    max_doubt: float | None = None
    classes: tuple[str, ...] = ONE_CLASS

    def __repr__(self) -> str:
        """Return the columns of the row that say most; arrays and the encoded mask are long."""
        names = ("image_id", "status", "area_px", "doubt", "flags", "message")
        return f"Result({', '.join(f'{name}={self.row[name]!r}' for name in names)})"

    @property
    def status(self) -> str:
        """Return ok or repaired, or rejected or failed: there is no mask, and `reason` says why."""
        return str(self.row["status"])

    @property
    def ok(self) -> bool:
        """Return whether there is a mask."""
        return self.status in USABLE

    @property
    def reason(self) -> str:
        """Return why there is no mask, or what was repaired; empty if there is nothing to say."""
        return str(self.row["message"])

    @property
    def codes(self) -> tuple[str, ...]:
        """Return the reason codes of `reason`, as in docs/reason-codes.md."""
        return tuple(self.row["codes"])

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the codes of what is unusual: look at the image before you use its mask."""
        return tuple(self.row["flags"])

    @property
    def flag_texts(self) -> tuple[str, ...]:
        """Return the sentences of the flags, in the same order."""
        return tuple(REGISTRY[flag].meaning for flag in self.flags)

    @property
    def mask(self) -> U8:
        """Return the mask of both lungs, u8[H,W] in {0,1}."""
        return self._as_stored(self._lungs())

    @property
    def right(self) -> U8:
        """Return the mask of the patient's right lung, u8[H,W] in {0,1}: a class of the model, else `split_sides`."""
        return self._side(0)

    @property
    def left(self) -> U8:
        """Return the mask of the patient's left lung, u8[H,W] in {0,1}: a class of the model, else `split_sides`."""
        return self._side(1)

    @property
    def masks(self) -> dict[str, U8]:
        """Return the mask u8[H,W] in {0,1} of each class of the model, such as `lung`, or `right_lung` and `heart`."""
        self._require_geometry()
        return read_class_masks(self.row) if self.row["classes"] else {LUNG: self.mask}

    @property
    def probability(self) -> F32:
        """Return the lung probability f32[H,W] in [0,1] before post-processing, of two lungs the larger one."""
        parts = lung_parts(self.classes)
        if not parts:
            raise self._no_lungs()
        return functools.reduce(np.maximum, (self._probability(name) for name in parts))

    @property
    def probabilities(self) -> dict[str, F32]:
        """Return the probability f32[H,W] in [0,1] of each class of the model before post-processing."""
        return {name: self._probability(name) for name in self.classes}

    def _probability(self, name: str) -> F32:
        geometry = self._require_geometry()
        assert self.squares is not None, "there is a mask"
        square = self.squares[self.classes.index(name)]
        return to_stored(restore(square, geometry), geometry.orientation)

    @property
    def doubt(self) -> float | None:
        """Return the doubt of the prediction, 0 certain to 1, None without a mask; good for ranking, not calibrated."""
        value = self.row["doubt"]
        return None if value is None else float(value)

    @property
    def doubt_reason(self) -> str:
        """Return why the prediction is doubtful: the sentences of its flags, else where the doubt is unusually high."""
        return str(self.row["doubt_reason"] or "")

    @property
    def spacing_mm(self) -> float | None:
        """Return the side of a pixel in mm, None if it is unknown or implausible."""
        value = self.row["spacing_mm"]
        return None if value is None else float(value)

    @property
    def areas_px(self) -> dict[str, int]:
        """Return the pixels of the `right` lung, the `left` lung, and `both`; then of the other classes."""
        self._require_geometry()
        lungs = {side: self.row[column] for side, column in _LUNG_AREAS.items()} if self._has_lungs else {}
        described = {one["class"]: one["area_px"] for one in self.row["classes"] or ()}
        others = {name: area for name, area in described.items() if not self._has_lungs or name not in LUNGS}
        return {name: int(area) for name, area in (lungs | others).items()}

    @property
    def areas_cm2(self) -> dict[str, float] | None:
        """Return the areas in cm2 with the keys of `areas_px`, None without `spacing_mm`."""
        areas, spacing = self.areas_px, self.spacing_mm
        return None if spacing is None else {name: area * (spacing**2 / 100) for name, area in areas.items()}

    @property
    def _has_lungs(self) -> bool:
        return bool(lung_parts(self.classes))

    def overlay(self, max_side: int | None = None) -> U8:
        """Draw the outlines of all masks on the upright image; RGB u8[h,w,3] of at most `max_side` px.

        The patient's right lung is orange, the left lung green; `colours_of` has the colours of the other classes.
        """
        geometry = self._require_geometry()
        assert self.image is not None, "there is a mask"
        masks = self._shown_masks()
        colours = colours_of(masks)
        outlines = [(to_upright(mask, geometry.orientation), colours[name], 0) for name, mask in masks.items()]
        return draw_outlines(normalise(self.image, "none"), outlines, max_side or max(self.image.shape))

    def save(
        self, path: str | os.PathLike[str], kind: FileKind = "mask", include_doubtful: bool = False, name: str = ""
    ) -> str:
        """Write a file and return its path.

        path: a file that ends in .png, or in .dcm for dicom-seg; or an existing local folder, where the file is named
        after the image's id and the kind, such as ID.mask.png.

        kind: mask (PNG, lungs 255), overlay (PNG) or dicom-seg (only for DICOM images). include_doubtful: write a
        dicom-seg also if flags question the mask, or if its doubt is unusual among the images of its list. name: of the
        class whose mask is written, instead of that of both lungs.

        Raises:
            ImageError: the image was rejected, or its DICOM segmentation is held back or not possible.
            InputError: the file cannot be written, or is the image.
            SettingsError: an unknown kind or class, or a file with another ending.

        """
        if kind not in _SUFFIXES:
            raise SettingsError(f"kind {kind!r}: expected {', '.join(_SUFFIXES)}")
        if name and (kind != "mask" or name not in self.classes):
            raise SettingsError(f"name {name!r}: pass a mask and a class: {', '.join(self.classes)}")
        target = storage.resolve(os.fspath(path))
        if os.path.isdir(target):
            middle = f".{name}" if name else ""
            target = storage.join(target, f"{self.row['image_id']}{middle}{_SUFFIXES[kind]}")
        if target == self.row["source_uri"]:
            raise InputError(f"{target} is the image: pass another file")
        ending = os.path.splitext(_SUFFIXES[kind])[1]
        if not target.lower().endswith(ending):
            raise SettingsError(f"{target}: pass an existing local folder, or a file that ends in {ending}")
        storage.write_bytes(target, self._encode(kind, include_doubtful, name))
        return target

    def _encode(self, kind: FileKind, include_doubtful: bool, name: str) -> bytes:
        if kind == "mask":
            return codecs.encode_image((self.masks[name] if name else self.mask) * np.uint8(255))
        if kind == "overlay":
            return codecs.encode_image(np.ascontiguousarray(self.overlay()[..., ::-1]))
        if self.file is None:
            raise ImageError("not_dicom", f"{self.row['image_id']} was passed as pixels: pass the path of a DICOM file")
        self._require_geometry()
        if not include_doubtful:
            require_reliable(self.row, self.max_doubt)
        content = self.file if isinstance(self.file, bytes) else storage.read_bytes(self.file)
        image_name = storage.name_of(self.row["source_uri"])
        return encode_segmentation(content, self._shown_masks(), self.row["model"], image_name)

    def _shown_masks(self) -> dict[str, U8]:
        """Return the mask of each class; of the one class lung that of each lung."""
        return self.masks if self.row["classes"] else dict(zip(LUNG_SIDES, (self.right, self.left), strict=True))

    def _side(self, number: int) -> U8:
        if LUNG_SIDES[number] in self.classes:
            return self.masks[LUNG_SIDES[number]]
        return self._as_stored(split_sides(self._lungs())[number])

    def _as_stored(self, mask: U8) -> U8:
        return to_stored(mask, self._require_geometry().orientation)

    def _lungs(self) -> U8:
        """Return the upright mask of both lungs."""
        self._require_geometry()
        if self.upright_mask is None:
            raise self._no_lungs()
        return self.upright_mask

    def _no_lungs(self) -> SettingsError:
        return SettingsError(
            f"the model segments {', '.join(self.classes)}, not both lungs: read `masks` of the result"
        )

    def _require_geometry(self) -> Geometry:
        if self.geometry is None or not self.ok:
            raise ImageError(self.codes[0], self.reason)
        return self.geometry
