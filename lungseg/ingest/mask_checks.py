"""Read the masks of a record, join them, repair what is safe to repair, and check them against their image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Grey
from lungseg.config import OddMasks, PreprocessSettings
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.imaging.thumbnails import find_visible_area, thumbnail
from lungseg.ingest.label_notes import label_notes
from lungseg.ingest.mask_cleaning import clean_mask
from lungseg.ingest.mask_orientation import THUMBNAIL, refuse_wrong_orientation
from lungseg.ingest.mask_turning import has_same_aspect, turn_with_image
from lungseg.ingest.reason_codes import Note
from lungseg.schema import Record

_LUNG = "lung"
_MIN_AREA, _MAX_AREA = 0.01, 0.7  # share of the image that the lungs cover
_MAX_BORDER = 0.8  # share of a side's length
# Least share of the mask's area on either side of the image's middle, for one component and for several. In Shenzhen
# and Montgomery one lung alone has 0.08 at most. Both lungs have 0.2 or more, except one collapsed lung of 0.09, which
# is a component of its own.
_MIN_SIDE_JOINED, _MIN_SIDE = 0.15, 0.02
_UNEVEN = 0.25  # area of the smaller lung to the larger


@dataclass(frozen=True)
class CheckedMask:
    """A usable mask: labels u8[H,W] in 0..classes; the share of the image that the lungs cover; repairs; flags."""

    labels: U8
    area: float
    repairs: tuple[Note, ...]
    flags: tuple[Note, ...]


def read_mask(
    record: Record,
    image: Grey,
    settings: PreprocessSettings,
    odd_masks: OddMasks,
    read: Callable[[str], bytes] = storage.read_bytes,
) -> CheckedMask | None:
    """Read a record's masks of the requested classes and check them; return None without a mask of the lungs.

    Raises:
        InputError: a file cannot be read.
        ImageError: a code of `codecs.read_mask`, `turn_with_image`, `resize_to_image`, `check_mask` or `label_notes`.

    """
    classes = record.mask_classes or (_LUNG,) * len(record.mask_uris)
    values = record.mask_values or ("",) * len(record.mask_uris)
    files = list(zip(classes, record.mask_uris, values, strict=True))
    requested = [file for file in files if file[0] in settings.classes]
    if not any(name == _LUNG for name, _, _ in requested):
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
    """Join masks, repair the lungs, and check them against their image.

    masks: pairs of class and u8[H,W] in {0,1}. Only lungs are repaired and checked; the other classes are painted as
    they are.

    Raises:
        ImageError: `mask_empty`, `mask_full`, `mask_border`, `mask_area`, `mask_orientation`, `mask_components`; with
            odd_masks `reject` also the code of a flag.

    """
    lungs, *others = [mask for name, mask in masks if name == _LUNG]
    for other in others:
        lungs = lungs | other
    display_name = f"the mask of {image_id}"
    lung_px = _count_pixels(lungs, display_name)
    lungs, component_areas, repairs = clean_mask(lungs, lung_px, display_name)
    if repairs:
        lung_px = cv2.countNonZero(lungs)
    area = lung_px / lungs.size
    touches_border = _check_border(lungs, display_name)
    _refuse_area(area, display_name)
    thumb = thumbnail(image, THUMBNAIL)
    visible_area = find_visible_area(thumb)
    refuse_wrong_orientation(lungs, thumb, visible_area.visible, display_name)
    _refuse_components(lungs, lung_px, component_areas, visible_area.columns, display_name)
    flags = _flags(touches_border, component_areas)
    if flags and odd_masks == "reject":
        raise ImageError(flags[0].code, f"{display_name} {flags[0].message}: correct it, or pass --odd-masks flag")
    if tuple(classes) == (_LUNG,):
        return CheckedMask(lungs, area, repairs, flags)
    labels = np.zeros(image.shape, np.uint8)
    for number, name in enumerate(classes, 1):
        for mask in [lungs] if name == _LUNG else [mask for kind, mask in masks if kind == name]:
            np.maximum(labels, mask * np.uint8(number), out=labels)  # a later class has the larger number
    return CheckedMask(labels, area, repairs, flags)


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
