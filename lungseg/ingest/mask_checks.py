"""Read the masks of a record, join them, repair what is safe to repair, and check them against their image."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Grey
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.config.class_names import LEFT_LUNG, LUNG, LUNG_SIDES, LUNGS, ONE_CLASS, RIGHT_LUNG, annotated_by
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.thumbnails import find_visible_area, thumbnail
from lungseg.ingest.label_notes import label_notes
from lungseg.ingest.mask_cleaning import clean_mask
from lungseg.ingest.mask_orientation import THUMBNAIL, refuse_wrong_orientation
from lungseg.ingest.mask_turning import has_same_aspect, turn_with_image
from lungseg.ingest.reason_codes import Note
from lungseg.schema import NOT_ANNOTATED, Record

_MIN_AREA, _MAX_AREA = 0.01, 0.7  # share of the image that the lungs cover
_MAX_BORDER = 0.8  # share of a side's length
# Least share of the mask's area on either side of the image's middle, for one component and for several. In Shenzhen
# and Montgomery one lung alone has 0.08 at most. Both lungs have 0.2 or more, except one collapsed lung of 0.09, which
# is a component of its own.
_MIN_SIDE_JOINED, _MIN_SIDE = 0.15, 0.02
_UNEVEN = 0.25  # area of the smaller lung to the larger


@dataclass(frozen=True)
class CheckedMask:
    """Usable masks u8[K,H,W] of the requested classes; the share that the lungs cover, if any; repairs; flags.

    Each mask is in {0,1}, or NOT_ANNOTATED everywhere.
    """

    masks: U8
    area: float | None
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


def read_mask(
    record: Record,
    image: Grey,
    settings: PreprocessSettings,
    odd_masks: OddMasks,
    read: Callable[[str], bytes] = storage.read_bytes,
) -> CheckedMask | None:
    """Read a record's masks of the requested classes and check them; return None if it has none of them.

    Raises:
        InputError: a file cannot be read.
        ImageError: a code of `codecs.read_mask`, `turn_with_image`, `resize_to_image`, `check_mask` or `label_notes`.

    """
    classes = record.mask_classes or (LUNG,) * len(record.mask_uris)
    values = record.mask_values or ("",) * len(record.mask_uris)
    files = list(zip(classes, record.mask_uris, values, strict=True))
    requested = [file for file in files if annotated_by((file[0],), settings.classes)]
    if not requested:
        return None
    names = [f"mask {storage.name_of(uri)}" for _, uri, _ in requested]
    decoded = [
        codecs.read_mask(read(uri), name, levels) for (_, uri, levels), name in zip(requested, names, strict=True)
    ]
    repairs = tuple(
        Note("mask_from_alpha", f"{name} shows no mask in its colours: its alpha channel is used")
        for name, mask in zip(names, decoded, strict=True)
        if mask.is_alpha
    )
    upright, turned = turn_with_image(decoded, names, image, record.orientation)
    repairs += turned
    masks: list[tuple[str, U8]] = []
    for (kind, _, _), name, drawn in zip(requested, names, upright, strict=True):
        mask, resized = resize_to_image(drawn, image.shape, name, record.image_id)
        masks.append((kind, mask))
        repairs += resized
    checked = check_mask(masks, image, record.image_id, settings.classes, odd_masks)
    lesions, flags = label_notes(files, odd_masks, read)
    return replace(checked, repairs=(*repairs, *lesions, *checked.repairs), flags=(*flags, *checked.flags))


def resize_to_image(mask: U8, shape: tuple[int, ...], display_name: str, image_id: str) -> tuple[U8, tuple[Note, ...]]:
    """Resize a mask, u8[h,w] in {0,1}, to its image's shape; return it and the repair.

    Both must have the same aspect ratio, within rounding to whole pixels.

    Raises:
        ImageError: `mask_size`.

    """
    if mask.shape == shape:
        return mask, ()
    height, width = shape[0], shape[1]
    actual, expected = f"{mask.shape[0]}x{mask.shape[1]}", f"{height}x{width}"
    if not has_same_aspect(mask.shape, shape):
        rotated = mask.shape == (width, height)
        advice = "rotate it by 90 degrees or transpose it" if rotated else "export the mask again"
        raise ImageError("mask_size", f"{display_name} is {actual}, its image is {expected} ({image_id}): {advice}")
    interpolation = cv2.INTER_AREA if mask.shape[0] > height else cv2.INTER_LINEAR
    resized = cv2.resize(mask * np.uint8(255), (width, height), interpolation=interpolation) > 127
    return resized.astype(np.uint8), (
        Note("mask_resized", f"{display_name} was resized from {actual} to {expected}, the size of its image"),
    )


def check_mask(
    masks: Sequence[tuple[str, U8]], image: Grey, image_id: str, classes: Sequence[str], odd_masks: OddMasks
) -> CheckedMask:
    """Join the masks of each class, repair the lungs, and check them against their image.

    masks: pairs of class and u8[H,W] in {0,1}. Only lungs are repaired; other classes are used as they are. A mask of
    the lungs is divided into right and left lung by `split_sides` where these are requested.

    Raises:
        ImageError: `mask_empty`, `mask_full`, `mask_border`, `mask_area`, `mask_orientation`, `mask_components`,
            `mask_sides`, `one_sided_mask`; with odd_masks `reject` also the code of a flag.

    """
    joined: dict[str, U8] = {}
    for name, mask in masks:
        joined[name] = joined[name] | mask if name in joined else mask
    for name in joined.keys() - {*LUNGS}:
        if cv2.countNonZero(joined[name]) == joined[name].size:
            raise ImageError("mask_full", f"the {name} mask of {image_id} marks every pixel: draw it, or remove it")
    lungs = _NO_LUNGS
    if not {*LUNGS}.isdisjoint(joined):
        lungs = _check_lungs(joined, image, image_id, odd_masks)
        joined |= lungs.masks
        if LUNG_SIDES[0] not in joined and not {*LUNG_SIDES}.isdisjoint(classes):
            joined |= dict(zip(LUNG_SIDES, split_sides(joined[LUNG]), strict=True))
    if tuple(classes) == (LUNG,):
        return CheckedMask(joined[LUNG][None], lungs.area, lungs.repairs, lungs.flags)
    unknown = np.full(image.shape, NOT_ANNOTATED, np.uint8)
    stacked = np.stack([joined.get(name, unknown) for name in classes])
    return CheckedMask(stacked, lungs.area, lungs.repairs, lungs.flags)


@dataclass(frozen=True)
class _CheckedLungs:
    """Repaired masks of the lungs, and of each lung if it has its own; the share of the image that they cover."""

    masks: dict[str, U8]
    area: float | None
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


_NO_LUNGS = _CheckedLungs({}, None, (), ())


def _check_lungs(joined: dict[str, U8], image: Grey, image_id: str, odd_masks: OddMasks) -> _CheckedLungs:
    """Repair the masks of the lungs, and check both lungs together against the image."""
    display_name = f"the mask of {image_id}"
    sides, repairs = _clean_sides(joined, image_id)
    drawn = [*sides.values(), *(joined[name] for name in ONE_CLASS if name in joined)]
    lungs = functools.reduce(np.bitwise_or, drawn)
    lung_px = _count_pixels(lungs, display_name)
    lungs, component_areas, more_repairs = clean_mask(lungs, lung_px, display_name)
    if more_repairs:
        lung_px = cv2.countNonZero(lungs)
    area = lung_px / lungs.size
    touches_border = _check_border(lungs, display_name)
    _refuse_area(area, display_name)
    thumb = thumbnail(image, THUMBNAIL)
    visible_area = find_visible_area(thumb)
    refuse_wrong_orientation(lungs, thumb, visible_area.visible, display_name)
    _refuse_components(lungs, lung_px, component_areas, visible_area.columns, display_name)
    _refuse_swapped_sides(sides, image_id)
    flags = _flags(touches_border, component_areas)
    if sides:  # lungs with a mask of their own may touch
        flags = tuple(flag for flag in flags if flag.code != "mask_one_component")
    if flags and odd_masks == "reject":
        raise ImageError(flags[0].code, f"{display_name} {flags[0].message}: correct it, or pass --odd-masks flag")
    return _CheckedLungs({LUNG: lungs, **sides}, area, (*repairs, *more_repairs), flags)


def _clean_sides(joined: dict[str, U8], image_id: str) -> tuple[dict[str, U8], tuple[Note, ...]]:
    """Repair the mask of each lung that has its own; nothing where one mask shows both lungs."""
    own = [name for name in LUNG_SIDES if name in joined]
    if len(own) == 1:
        raise ImageError("one_sided_mask", f"{image_id} has a {own[0]} mask only: add that of the other lung")
    sides: dict[str, U8] = {}
    repairs: list[Note] = []
    for name in own:
        sides[name] = joined[name]
        if area := cv2.countNonZero(joined[name]):
            sides[name], _, notes = clean_mask(joined[name], area, f"the {name} mask of {image_id}")
            repairs += notes
    return sides, tuple(repairs)


def _refuse_swapped_sides(sides: dict[str, U8], image_id: str) -> None:
    """Refuse a right lung that is on the right of the image, beside the left one."""
    if all(cv2.countNonZero(mask) for mask in sides.values()):
        columns = {name: float(np.nonzero(mask.any(axis=0))[0].mean()) for name, mask in sides.items()}
        if columns and columns[RIGHT_LUNG] > columns[LEFT_LUNG]:
            raise ImageError(
                "mask_sides",
                f"the {RIGHT_LUNG} mask of {image_id} is on the right of its image, expected the patient's right side, "
                "which is on the left: exchange the two masks, or mirror image and masks",
            )


def _flags(touches_border: bool, areas: list[int]) -> tuple[Note, ...]:
    """Flag a mask that is unusual but may be right; `areas` are those of its components, largest first."""
    flags = (
        (Note("mask_touches_border", "touches the border of the image"), touches_border),
        (Note("mask_one_component", "joins both lungs"), len(areas) == 1),
        (Note("mask_three_components", "has three connected components"), len(areas) == 3),
        (
            Note("mask_uneven", "has one lung smaller than a quarter of the other"),
            len(areas) == 2 and areas[1] < _UNEVEN * areas[0],
        ),
    )
    return tuple(flag for flag, is_set in flags if is_set)


def _count_pixels(lungs: U8, display_name: str) -> int:
    """Count the pixels of a mask; refuse an empty and a full one."""
    count = cv2.countNonZero(lungs)
    if count == 0:
        raise ImageError("mask_empty", f"{display_name} marks no pixel: draw it, or remove the image")
    if count == lungs.size:
        raise ImageError("mask_full", f"{display_name} marks every pixel: draw it, or remove the image")
    return count


def _check_border(lungs: U8, display_name: str) -> bool:
    """Return whether the mask touches the border of the image; refuse too many sides, or most of one."""
    shares = [float(side.mean()) for side in (lungs[0], lungs[-1], lungs[:, 0], lungs[:, -1])]
    count = sum(share > 0 for share in shares)
    if count >= 3 or max(shares) > _MAX_BORDER:
        advice = "draw lungs light and everything else dark" if count == 4 else "draw it again"
        raise ImageError(
            "mask_border",
            f"{display_name} touches {count} sides of its image, one along {max(shares):.0%} of its length, expected "
            f"two sides at most and {_MAX_BORDER:.0%}: {advice}",
        )
    return count > 0


def _refuse_area(area: float, display_name: str) -> None:
    if not _MIN_AREA <= area <= _MAX_AREA:
        expected = f"{_MIN_AREA:.0%} to {_MAX_AREA:.0%}"
        raise ImageError(
            "mask_area", f"{display_name} covers {area:.1%} of its image, expected {expected}: draw it again"
        )


def _refuse_components(lungs: U8, lung_px: int, areas: list[int], columns: slice, display_name: str) -> None:
    """Refuse more than three components, and one lung alone; `columns` of the thumbnail show the patient."""
    if len(areas) > 3:
        raise ImageError(
            "mask_components",
            f"{display_name} has {len(areas)} connected components, expected two lungs: draw it again",
        )
    middle = round((columns.start + columns.stop) * lungs.shape[1] / (2 * THUMBNAIL))
    left = cv2.countNonZero(lungs[:, :middle]) / lung_px
    if min(left, 1 - left) < (_MIN_SIDE_JOINED if len(areas) == 1 else _MIN_SIDE):
        side = "left" if left > 0.5 else "right"
        raise ImageError(
            "mask_components",
            f"{display_name} marks one lung only, in the {side} half of the image, expected two: draw the other one",
        )
