"""Masks read, joined, checked against their pictures, and put right where that is safe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import ImageError
from lungseg.imaging import codecs, thumbnails
from lungseg.ingest.reason_codes import Note
from lungseg.schema import Record

Grey = NDArray[np.uint8] | NDArray[np.uint16]
Mask = NDArray[np.uint8]

_LUNG = "lung"
_SPECK = 0.01  # of the mask's area, for components and for holes
_AREA = (0.01, 0.7)  # the lungs' share of the picture
_LONG_BORDER = 0.8  # of a side's length
# Of the mask's area beyond the picture's middle. In Shenzhen and Montgomery one lung alone has 0.08 at most; both have
# 0.2 or more, but for one collapsed lung of 0.09, which is a part of its own.
_OTHER_SIDE, _NOTHING = 0.15, 0.02
_UNEVEN = 0.25  # smaller lung to larger
_THUMBNAIL = 128  # px a side, for orientation
# On Shenzhen and Montgomery at 256 px each mask as drawn fits better than turned in any way, by 0.05 or more.
_FITS_FAR_BETTER = 0.1
_FITS = 0.12
_FITS_WELL = 0.4  # no mask of those 688, turned in any of seven ways, fits by more than 0.30
# What a mask may have suffered, and how a picture suffers the same.
_TURNED: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "mirrored left-right": np.fliplr,
    "upside down": np.flipud,
    "turned by 180 degrees": lambda field: np.rot90(field, 2),
    "turned by 90 degrees to the left": np.rot90,
    "turned by 90 degrees to the right": lambda field: np.rot90(field, 3),
    "transposed": np.transpose,
    "transposed and turned by 180 degrees": lambda field: np.rot90(field.T, 2),
}


@dataclass(frozen=True)
class CheckedMask:
    """A mask that can be used: labels u8[H,W] in 0..classes; the lungs' share of the picture; repairs and flags."""

    labels: Mask
    area: float
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


def read_mask(
    record: Record,
    image: Grey,
    settings: PreprocessSettings,
    odd: OddMasks,
    read: Callable[[str], bytes] = storage.read_bytes,
) -> CheckedMask | None:
    """Read a record's masks of the classes asked for, and check them against its picture; None without one of lungs.

    Raises:
        InputError: a file cannot be read.
        ImageError: a code of `images.decode_mask`, `fit` or `check`.

    """
    classes = record.mask_classes or (_LUNG,) * len(record.mask_uris)
    wanted = [pair for pair in zip(classes, record.mask_uris, strict=True) if pair[0] in settings.classes]
    if not any(name == _LUNG for name, _ in wanted):
        return None
    parts: list[tuple[str, Mask]] = []
    repairs: tuple[Note, ...] = ()
    for name, uri in wanted:
        what = f"mask {storage.name_of(uri)}"
        found = codecs.decode_mask(read(uri), what)
        mask, repair = resize_to_image(found, image.shape, what, record.image_id)
        parts.append((name, mask))
        repairs += repair
    checked = check_mask(parts, image, record.image_id, settings.classes, odd)
    return replace(checked, repairs=(*repairs, *checked.repairs))


def resize_to_image(mask: Mask, shape: tuple[int, ...], what: str, image_id: str) -> tuple[Mask, tuple[Note, ...]]:
    """Bring u8[h,w] in {0,1} to its picture's size where both have one aspect ratio, within rounding to whole pixels.

    Raises:
        ImageError: `mask_size`, which says so where the mask lies on its side.

    """
    if mask.shape == shape:
        return mask, ()
    height, width = shape[0], shape[1]
    found, expected = f"{mask.shape[0]}x{mask.shape[1]}", f"{height}x{width}"
    # Each side of a resized mask is off by up to half a pixel of its own.
    if abs(mask.shape[1] * height - mask.shape[0] * width) > 0.5 * (height + width):
        hint = "turn it by 90 degrees or transpose it" if mask.shape == (width, height) else "export the mask again"
        raise ImageError("mask_size", f"{what} is {found}, its image is {expected} ({image_id}): {hint}")
    shrinking = mask.shape[0] > height
    way = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    resized = cv2.resize(mask * np.uint8(255), (width, height), interpolation=way) > 127
    return resized.astype(np.uint8), (
        Note("mask_resized", f"{what} was resized from {found} to {expected}, the size of its image"),
    )


def check_mask(
    parts: Sequence[tuple[str, Mask]], image: Grey, image_id: str, classes: Sequence[str], odd: OddMasks
) -> CheckedMask:
    """Join masks, each a class and u8[H,W] in {0,1}, repair the lungs, and check them against their picture.

    Specks and holes of under 1 % of the lungs' area are repaired; of other classes nothing is.

    Raises:
        ImageError: `mask_empty`, `mask_full`, `mask_border`, `mask_area`, `mask_orientation`, `mask_components`; with
            odd `reject` a flag's code too.

    """
    lungs, *others = [mask for name, mask in parts if name == _LUNG]
    for other in others:
        lungs = lungs | other
    what = f"the mask of {image_id}"
    marked = _count(lungs, what)
    lungs, sizes, repairs = _clean(lungs, marked, what)
    if repairs:
        marked = cv2.countNonZero(lungs)
    area = marked / lungs.size
    touching = _touched(lungs, what)
    _refuse_area(area, what)
    thumb = thumbnails.thumbnail(image, _THUMBNAIL)
    shown = thumbnails.find_visible_area(thumb)
    _refuse_orientation(lungs, thumb, shown.visible, what)
    _refuse_components(lungs, marked, sizes, shown.columns, what)
    flags = _flags(touching, sizes)
    if flags and odd == "reject":
        raise ImageError(flags[0].code, f"{what} {flags[0].message}: correct it, or pass --odd-masks flag")
    if tuple(classes) == (_LUNG,):
        return CheckedMask(lungs, area, repairs, flags)
    labels = np.zeros(image.shape, np.uint8)
    for number, name in enumerate(classes, 1):
        for mask in [lungs] if name == _LUNG else [mask for part, mask in parts if part == name]:
            np.maximum(labels, mask * np.uint8(number), out=labels)  # a later class has the larger number
    return CheckedMask(labels, area, repairs, flags)


def _flags(touching: bool, sizes: list[int]) -> tuple[Note, ...]:
    """Flag a mask that is unusual but may be right; `sizes` are the areas of its components, largest first."""
    flags = (
        (Note("mask_touches_border", "touches the border of the image"), touching),
        (Note("mask_one_component", "joins both lungs"), len(sizes) == 1),
        (Note("mask_three_components", "has three connected components"), len(sizes) == 3),
        (
            Note("mask_uneven", "has one lung smaller than a quarter of the other"),
            len(sizes) == 2 and sizes[1] < _UNEVEN * sizes[0],
        ),
    )
    return tuple(flag for flag, is_set in flags if is_set)


def _count(lungs: Mask, what: str) -> int:
    """Count the mask's pixels; refuse none, and all."""
    count = cv2.countNonZero(lungs)
    if count == 0:
        raise ImageError("mask_empty", f"{what} marks no pixel: draw it, or take the image out")
    if count == lungs.size:
        raise ImageError("mask_full", f"{what} marks every pixel: draw it, or take the image out")
    return count


def _clean(lungs: Mask, marked: int, what: str) -> tuple[Mask, list[int], tuple[Note, ...]]:
    """Remove specks and fill small holes: the mask, its parts' areas in px, largest first, and what was done."""
    least = _SPECK * marked
    clean = _clean_already(lungs, least)
    if clean:
        return lungs, clean, ()
    left, top, width, height = cv2.boundingRect(lungs)
    box = lungs[top : top + height, left : left + width]
    specks, small, sizes = _small_parts(box, least)
    box = box - specks
    # A rim of background joins all that lies outside; what is not joined to it is a hole.
    around = cv2.copyMakeBorder(box, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(around, None, (0, 0), 1)
    holes, gaps, _ = _small_parts(1 - around[1:-1, 1:-1], least)
    repairs = []
    if small:
        repairs.append(Note("mask_specks", f"{cv2.countNonZero(specks)} px in {small} specks removed from {what}"))
    if gaps:
        repairs.append(Note("mask_holes", f"{cv2.countNonZero(holes)} px in {gaps} holes filled in {what}"))
    if repairs:
        lungs = np.zeros_like(lungs)
        lungs[top : top + height, left : left + width] = box + holes
    return lungs, sizes, tuple(repairs)


def _clean_already(lungs: Mask, least: float) -> list[int]:
    """Look at the outlines alone, which is several times faster: the parts' areas, largest first, if all is well.

    Empty where an outline is that of a hole, or of a part that may be too small: those are counted pixel by pixel.
    """
    outlines, nesting = cv2.findContours(lungs, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    if (nesting[0, :, 3] >= 0).any() or min(areas) < 2 * least:
        return []
    return sorted((round(area) for area in areas), reverse=True)


def _small_parts(mask: NDArray[Any], least: float) -> tuple[Mask, int, list[int]]:
    """Find the parts of fewer than `least` px: as a mask, how many, and the areas of the others, largest first."""
    if not cv2.countNonZero(mask):
        return np.zeros(mask.shape, np.uint8), 0, []
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    # Counting labels is several times faster than OpenCV's own statistics.
    areas = np.bincount(labels.ravel(), minlength=count)
    small = areas < least
    small[0] = False
    found = (
        np.take(small.astype(np.uint8), np.asarray(labels, np.int32)) if small.any() else np.zeros(mask.shape, np.uint8)
    )
    return found, int(small.sum()), sorted((int(area) for area in areas[1:][~small[1:]]), reverse=True)


def _touched(lungs: Mask, what: str) -> bool:
    """Whether the mask touches the picture's border; refuse what lies along it, or on most of its sides."""
    shares = [float(side.mean()) for side in (lungs[0], lungs[-1], lungs[:, 0], lungs[:, -1])]
    count = sum(share > 0 for share in shares)
    if count >= 3 or max(shares) > _LONG_BORDER:
        found = f"touches {count} sides of its picture, one over {max(shares):.0%} of its length"
        hint = "draw lungs light and all else dark" if count == 4 else "draw it again"
        raise ImageError("mask_border", f"{what} {found}, lungs touch two at most: {hint}")
    return count > 0


def _refuse_area(area: float, what: str) -> None:
    if not _AREA[0] <= area <= _AREA[1]:
        expected = f"{_AREA[0]:.0%} to {_AREA[1]:.0%}"
        raise ImageError("mask_area", f"{what} covers {area:.1%} of its picture, expected {expected}: draw it again")


def _refuse_orientation(lungs: Mask, thumb: NDArray[np.float32], live: NDArray[np.bool_], what: str) -> None:
    """Refuse a mask that was turned: turned back, its outline parts dark from light far better."""
    fits = orientation_scores(lungs, thumb, live)
    if len(fits) == 1:
        return
    as_is = fits.pop("")
    best = max(fits, key=lambda turn: fits[turn])
    # A mask that fits well but for its sign is no matter of turning: its picture's bones are dark.
    if fits[best] - as_is > _FITS_FAR_BETTER and fits[best] > max(_FITS, -as_is):
        raise ImageError(
            "mask_orientation",
            f"{what} is {best}: put right it fits its picture by {fits[best]:.2f}, as it is by {as_is:.2f}: "
            "save it the way round that its image is",
        )


def orientation_scores(lungs: Mask, thumb: NDArray[np.float32], live: NDArray[np.bool_]) -> dict[str, float]:
    """Correlate lung with darkness along the mask's outline, for the mask as it is (named "") and turned each way.

    Only a band of a few hundredths of the picture on both sides of the outline counts, so that a picture's slow changes
    of brightness do not. `thumb` is the picture's square thumbnail, f32[S,S], `live` what of it is no border. Each is
    Pearson's, from -1 to 1. A mask that fits well as it is is not turned.
    """
    dark = 1 - thumbnails.percentile_ranks(thumb)
    dark[~live] = 0  # black padding is no lung
    mask = np.asarray(thumbnails.thumbnail(lungs, len(thumb)), np.uint8)  # means of 0 and 1, rounded
    cross = np.ones((3, 3), np.uint8)
    band = cv2.dilate(mask, cross, iterations=2) > cv2.erode(mask, cross, iterations=2)
    if not band.any():
        return dict.fromkeys(("", *_TURNED), 0.0)
    inside = mask[band] - mask[band].mean()
    as_is = _correlations(dark[band][None], inside)
    if as_is[0] >= _FITS_WELL:
        return {"": as_is[0]}
    # The picture is turned as the mask may have been, so that the band is worked out once.
    turned = np.stack([back(dark)[band] for back in _TURNED.values()])
    return {"": as_is[0], **dict(zip(_TURNED, _correlations(turned, inside), strict=True))}


def _correlations(seen: NDArray[np.float64], inside: NDArray[np.float64]) -> list[float]:
    """Correlate each row of f64[N,P] with f64[P] of mean 0; 0 where one of them does not vary."""
    seen = seen - seen.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(seen).sum(axis=1) * np.square(inside).sum())
    found: list[float] = np.divide(seen @ inside, norms, out=np.zeros(len(seen)), where=norms > 0).tolist()
    return found


def _refuse_components(lungs: Mask, marked: int, sizes: list[int], columns: slice, what: str) -> None:
    if len(sizes) > 3:
        raise ImageError("mask_components", f"{what} has {len(sizes)} parts, expected two lungs: draw it again")
    middle = round((columns.start + columns.stop) * lungs.shape[1] / (2 * _THUMBNAIL))
    left = cv2.countNonZero(lungs[:, :middle]) / marked
    if min(left, 1 - left) < (_OTHER_SIDE if len(sizes) == 1 else _NOTHING):
        side = "left" if left > 0.5 else "right"
        raise ImageError(
            "mask_components", f"{what} marks one lung only, in the picture's {side} half, expected two: draw the other"
        )
