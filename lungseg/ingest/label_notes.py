"""Note the pixels of label files that are lesions, or that no class takes."""

from collections.abc import Callable, Sequence

from lungseg import storage
from lungseg.config import OddMasks
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.ingest.reason_codes import Note

IGNORED, LESION = "ignored", "lesion"
"""Kinds of labels that are no classes of lungseg: their pixels only add a flag or a repair."""

Notes = tuple[Note, ...]


def label_notes(
    files: Sequence[tuple[str, str, str]], odd_masks: OddMasks, read: Callable[[str], bytes]
) -> tuple[Notes, Notes]:
    """Return a repair if a label file has lesions, and a flag if it has ignored pixels.

    files: kind, uri and grey values of each label.

    Raises:
        ImageError: `mask_ignored_labels`, with odd_masks `reject`.

    """
    repairs, flags = [], []
    for kind, uri, values in files:
        if kind not in (IGNORED, LESION) or not values:
            continue
        name = f"mask {storage.name_of(uri)}"
        count = codecs.count_values(read(uri), name, values)
        if count and kind == LESION:
            repairs.append(Note("lesions_joined", f"{name} marks lesions with {values}: they are part of the lungs"))
        elif count:
            message = f"{name} has {count} pixels of labels that are ignored or unknown ({values})"
            flags.append(Note("mask_ignored_labels", message))
    if flags and odd_masks == "reject":
        raise ImageError(flags[0].code, f"{flags[0].message}: correct it, or pass --odd-masks flag")
    return tuple(repairs), tuple(flags)
