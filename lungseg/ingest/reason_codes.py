"""Registry of reason codes: why an image was rejected, failed, repaired or flagged, and what to do about it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lungseg.schema import USABLE, Record

UNMATCHED_MASK = "unmatched_mask"
"""Code of a file that is a mask without an image; it is counted as a row, but not as an image."""
OTHER_MASK = "other_mask"
"""Code of a file that is taken for a mask of something else than lungs; it is counted in the same way."""
NOT_IMAGES = frozenset({UNMATCHED_MASK, OTHER_MASK})

CodeStatus = Literal["rejected", "failed", "repaired", "flag", "not exported"]


@dataclass(frozen=True)
class ReasonCode:
    """One reason code. `status` is the status of a row with this code; a flag does not change the status.

    Rows with the status `not exported` are those that lungseg export could not write in a format.
    """

    code: str
    status: CodeStatus
    meaning: str
    advice: str


@dataclass(frozen=True)
class Note:
    """A reason code with its message, one sentence about one file.

    Raises:
        KeyError: `code` is not in the registry.

    """

    code: str
    message: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown code."""
        REGISTRY[self.code]


_REJECTED: tuple[tuple[str, str, str], ...] = (
    ("undecodable", "The file is empty, truncated, damaged, or not an image.", "Download or export the file again."),
    ("too_large", "The header announces more pixels than any radiograph has.", "Check the file, or remove it."),
    ("too_small", "A side is shorter than 32 px, as in a thumbnail or an icon.", "Use the original image."),
    ("depth", "The pixels are neither 8 nor 16 bit grey values.", "Export the image as 8 or 16 bit grey."),
    (
        "two_valued",
        "The picture has only a few grey values, like a mask or a label map.",
        "If it is a mask, name its folder or column after what it marks, such as `lung masks`. Else remove it.",
    ),
    ("blank", "The image has almost only one grey value.", "Export the image again, or remove it."),
    (
        "colour",
        "The image is truly coloured, like a photograph or an image with a coloured overlay.",
        "Export the radiograph without overlay, or remove it.",
    ),
    (
        "extreme_aspect",
        "One side is more than 2.5 times as long as the other.",
        "Crop the image to the chest, or remove it.",
    ),
    ("multi_frame", "The file has several pages or frames.", "Save the one image that you need as a file of its own."),
    (
        "flat_match_image",
        "An image of --match-to has one grey value, so it is not used for the grey-level landmarks.",
        "Remove it from the --match-to folder.",
    ),
    ("no_pixels", "The DICOM file contains no image; it may be a report or a directory.", "Remove the file."),
    ("not_radiograph", "The DICOM Modality is not that of a radiograph.", "Remove the file."),
    ("body_part", "The DICOM tags name a body part other than the chest.", "Remove the file, or correct the tag."),
    ("lateral_view", "The DICOM tags or the listing name a lateral view.", "Remove it; only frontal views are used."),
    ("oblique_view", "The DICOM tags or the listing name an oblique view.", "Remove it; only frontal views are used."),
    (
        "codec_missing",
        "No installed decoder reads the DICOM transfer syntax.",
        "Export the file with another transfer syntax.",
    ),
    (
        "pixel_attributes",
        "The DICOM file lacks an attribute of its pixels that can have several values, or its pixels contradict one.",
        "Export the file again, or correct the attribute that the message names.",
    ),
    (
        "stored_bits_unclear",
        "Bits above the DICOM BitsStored are set, and it is not clear whether they belong to the picture.",
        "Export the file again with the right BitsStored.",
    ),
    ("mask_size", "The mask has another aspect ratio than its image.", "Export the mask at the size of its image."),
    ("mask_empty", "The mask marks no pixel.", "Draw the mask, or remove the image."),
    ("mask_full", "The mask marks every pixel.", "Draw the mask, or remove the image."),
    (
        "mask_area",
        "The mask covers under 1 % or over 70 % of the image, or its area is far from the rest of the dataset.",
        "Check the mask; draw it again, or remove the image.",
    ),
    (
        "mask_border",
        "The mask touches three or four sides of the image, or most of one side.",
        "Draw lungs light and everything else dark.",
    ),
    ("mask_components", "The mask shows one lung only, or more than three components.", "Draw both lungs again."),
    (
        "mask_levels",
        "The mask has several grey values that fill areas, and they do not say which one is lung.",
        "Save a mask of the lungs alone.",
    ),
    (
        "mask_orientation",
        "The mask is mirrored, rotated or transposed, or only its image has an orientation tag and it is not clear "
        "which orientation the mask has. The message says which of these applies.",
        "Save the mask in the orientation of its image.",
    ),
    (
        "mask_sides",
        "The mask of the right lung is on the right of the image, where an upright X-ray shows the left lung.",
        "Exchange the masks of both lungs, or mirror the image and its masks.",
    ),
    ("one_sided_mask", "Only the left or only the right lung has a mask.", "Add the other mask, or remove the image."),
    (
        "unmatched_mask",
        "The mask matches no image, or its image has another mask of the same name.",
        "Give the mask the name of its image, or remove it.",
    ),
    (
        "other_mask",
        "The file is ignored: the name of its folder or of its label says that it is a mask of something else than "
        "lungs, or another folder has the masks of the lungs.",
        "Name the folder `lung masks` or the label `lung`, if it is one of lungs; name a folder of X-rays `images`.",
    ),
    ("duplicate_id", "Another image has the same id.", "Rename one of the files."),
    ("listed_twice", "The listing names the same image in an earlier row.", "Remove one of the rows."),
    (
        "extra_channel",
        "The file is another channel of an nnU-Net case; only channel 0000 is read.",
        "Remove it, or convert the case to one grey image.",
    ),
    ("no_image", "The row of the listing names no image.", "Fill in the cell, or remove the row."),
)
_FAILED: tuple[tuple[str, str, str], ...] = (
    ("unreadable", "The file is missing or cannot be read.", "Check the path and the storage; run the same command."),
    ("crashed", "The process that read the file crashed.", "Run the same command; if it fails again, remove the file."),
    (
        "changed",
        "The file changed after the inference was planned.",
        "Restore the file, or predict the archive as it is now with another --out.",
    ),
    ("shard", "The sample cannot be read from its prepared tar.", "Run lungseg prepare again, then the same command."),
)
_REPAIRED: tuple[tuple[str, str, str], ...] = (
    ("inverted", "Bones were dark; the grey values were inverted.", "None needed; check one such image."),
    ("grey_as_colour", "A grey image was stored as colour; its luma is used.", "None needed."),
    (
        "orientation_tag",
        "The orientation tag says that the picture is rotated or mirrored; it was made upright for the model.",
        "None needed; height, width, mask, bbox and centroid of a prediction are those of the stored pixels.",
    ),
    (
        "mask_turned",
        "The mask was made upright, by its own orientation tag or by that of its image.",
        "None needed.",
    ),
    (
        "mask_from_alpha",
        "The mask was read from the alpha channel, as its colours show no mask.",
        "None needed; check one such mask.",
    ),
    (
        "attribute_assumed",
        "The DICOM file lacks attributes of its pixels; each could have one value only, which was used.",
        "None needed; check one such image.",
    ),
    (
        "stored_bits",
        "The DICOM pixels use other bits than the header states, for example more than BitsStored; the whole picture "
        "is used.",
        "None needed; check one such image.",
    ),
    (
        "narrow_range",
        "The grey values fill less than a quarter of the range, e.g. beside a bright marker; they were stretched, or "
        "the bright border was clipped.",
        "None needed; check one such image.",
    ),
    ("mask_resized", "The mask was resized to its image; both have the same aspect ratio.", "None needed."),
    (
        "lesions_joined",
        "The label file of an nnU-Net dataset marks lesions with a label of their own; they are part of the lungs.",
        "None needed; check one such mask.",
    ),
    (
        "mask_outline_filled",
        "The mask draws outlines of the lungs; their inside was filled.",
        "None needed; check one such mask.",
    ),
    ("mask_specks", "Components under 1 % of the mask's area were removed.", "None needed."),
    ("mask_holes", "Holes under 1 % of the mask's area were filled.", "None needed."),
)
_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("polarity_unsure", "Bones may be dark, but this is not certain enough to invert the image.", "Look at the image."),
    (
        "small_picture",
        "A side is shorter than 64 px: the borders of the lungs are too coarse to trust the mask.",
        "Use the original image.",
    ),
    ("rotated", "The chest lies on its side or is upside down.", "Turn the image upright, or remove it."),
    (
        "not_chest_like",
        "The image does not look like a frontal chest X-ray that shows both lungs.",
        "Look at the image; remove it if it is something else.",
    ),
    (
        "body_part_unknown",
        "The DICOM tags name the body part with words that lungseg does not know, also beside a word for the chest.",
        "Look at the image; correct the tag.",
    ),
    (
        "body_part_several",
        "The DICOM tags name the chest and other body parts, as in an image of a whole newborn.",
        "Look at the image; crop it to the chest.",
    ),
    (
        "view_unknown",
        "The DICOM tags or the listing name the view with words that lungseg does not know, or a frontal and a "
        "lateral view.",
        "Look at the image; correct the tag.",
    ),
    (
        "spacing_unusable",
        "The DICOM file states a pixel spacing that is not two positive numbers, differs between rows and columns by "
        "over 5 %, or makes the image shorter than 5 cm or longer than 1 m; so there are no areas in cm2.",
        "Use areas in px, or correct PixelSpacing.",
    ),
    (
        "no_mask",
        "Other images of this dataset have a mask of the lungs, this one has none; or no label of its label file is "
        "lung.",
        "Add the mask, if it should have one.",
    ),
    (
        "missing_class",
        "Other images of this dataset have a mask of a requested class that this one lacks: it is not annotated here.",
        "Add the mask; an all-black one says that there is nothing to mark.",
    ),
    (
        "mask_ignored_labels",
        "The label file has pixels of the label `ignore` or of a label with an unknown name; they count as background.",
        "Check these pixels; rename the label in dataset.json, or draw the mask again.",
    ),
    ("mask_touches_border", "The mask touches the border of the image.", "Check that the lungs are not cut off."),
    ("mask_one_component", "Both lungs are one connected component.", "Separate the lungs if they do not touch."),
    ("mask_three_components", "The mask has three connected components.", "Check the mask."),
    ("mask_uneven", "One lung is smaller than a quarter of the other.", "Check that both lungs are complete."),
)
_RESULT_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("lungs_empty", "The predicted mask marks no pixel.", "Look at the image; it may show no lungs."),
    (
        "lungs_one_side",
        "The predicted mask has one lung, or one is smaller than a fifth of the other.",
        "Check that the other lung is missing in the image too.",
    ),
    (
        "lungs_at_border",
        "The predicted mask fills more than a quarter of one side of the image.",
        "Check that the image shows the lungs completely.",
    ),
    (
        "lungs_joined",
        "Both predicted lungs are one component, so only the midline divides right and left.",
        "Check the division before you use areas of one lung.",
    ),
    (
        "lungs_implausible",
        "The mask does not have the size, shape or position of a pair of lungs.",
        "Look at the mask before you use it.",
    ),
    (
        "lungs_uncertain",
        "The mean probability of the lung pixels is below 0.75.",
        "Look at the mask before you use it; predict with a model that was trained longer.",
    ),
    (
        "heart_on_right",
        "The predicted heart lies on the patient's right: the picture is mirrored, the heart lies on the right "
        "(dextrocardia), or its mask is wrong.",
        "Look at the mask of the heart; compare with the side marker; mirror the picture back if it is mirrored.",
    ),
)
_NOT_EXPORTED: tuple[tuple[str, str, str], ...] = (
    (
        "flagged",
        "The row has a flag that questions what the image shows or what the mask marks.",
        "Look at the row; then pass --include-doubtful.",
    ),
    (
        "doubtful",
        "The doubt of the row is unusual: over the third quartile of the predictions plus 1.5 interquartile ranges, "
        "and over 1.5 times the third quartile.",
        "Look at the row; then pass --include-doubtful.",
    ),
    ("not_dicom", "The image is not a DICOM file, so it can have no DICOM segmentation.", "Export other formats."),
    (
        "seg_reference",
        "The DICOM file lacks a valid element that a segmentation must refer to, such as SOPInstanceUID.",
        "Export the file again from its archive.",
    ),
    (
        "seg_refused",
        "The DICOM file has elements that cannot be written to a segmentation.",
        "Export the file again from its archive.",
    ),
    ("mask_damaged", "The predicted mask cannot be decoded.", "Predict the image again."),
    ("no_lungs", "The model has no class of the lungs, so there is no mask of them.", "Export class-masks."),
    (
        "unsafe_target",
        "The name of the exported file leaves the output folder, or is that of an input.",
        "Pass another --out, or rename the image.",
    ),
)

_GROUPS: tuple[tuple[CodeStatus, tuple[tuple[str, str, str], ...]], ...] = (
    ("rejected", _REJECTED),
    ("failed", _FAILED),
    ("repaired", _REPAIRED),
    ("flag", (*_FLAGS, *_RESULT_FLAGS)),
    ("not exported", _NOT_EXPORTED),
)
REGISTRY: dict[str, ReasonCode] = {
    code: ReasonCode(code, status, meaning, advice) for status, rows in _GROUPS for code, meaning, advice in rows
}
"""Every reason code by name. `--odd-masks reject` rejects a mask that has a flag, with the flag's code."""


RESULT_FLAGS = frozenset(code for code, _, _ in _RESULT_FLAGS)
"""Flags of a predicted mask."""
QUESTIONABLE = RESULT_FLAGS | {"small_picture", "rotated", "not_chest_like", "polarity_unsure"}
"""Flags that question what the image shows or what the predicted mask marks."""


def counted_codes(status: str, codes: Sequence[str]) -> list[str]:
    """Select the codes that summaries count: all of a usable image, only the first of another one.

    The first code is why an image cannot be used. Repairs that were done before follow it.
    """
    return list(codes if status in USABLE else codes[:1])


def was_repaired(codes: Sequence[str]) -> bool:
    """Return whether one of the codes is a repair."""
    return any(REGISTRY[code].status == "repaired" for code in codes)


def reject(record: Record, note: Note) -> Record:
    """Reject or fail a record, as registered for the code; the note replaces all earlier ones."""
    status = "failed" if REGISTRY[note.code].status == "failed" else "rejected"
    return replace(record, status=status, codes=(note.code,), message=note.message)  # type: ignore[arg-type]


def with_notes(record: Record, notes: Sequence[Note]) -> Record:
    """Append codes and messages to those of a record."""
    messages = [record.message, *(note.message for note in notes)]
    codes = (*record.codes, *(note.code for note in notes))
    return replace(record, codes=codes, message="; ".join(filter(None, messages)))


def is_unmatched_mask(record: Record) -> bool:
    """Return whether a record stands for a mask that no image uses: it matches none, or is not of lungs."""
    return not NOT_IMAGES.isdisjoint(record.codes)


def as_markdown() -> str:
    """Write the registry as the page docs/reason-codes.md."""
    rows = [f"| `{entry.code}` | {entry.status} | {entry.meaning} | {entry.advice} |" for entry in REGISTRY.values()]
    return "\n".join([_HEAD, "| code | status | meaning | what to do |", "|---|---|---|---|", *rows, ""])


_HEAD = """# Reason codes

Generated by `python -m lungseg.ingest.reason_codes`; do not edit.

`manifest.parquet` of a prepared dataset and the rows of predictions have two columns that explain the status of an
image: `codes`, a list of the codes below, and `message`, the sentences for a reader. The first code of a rejected or
failed image says why; repairs that were done before follow. A prediction row with status `ok` or `repaired` has the
code of a reference mask that could not be used. A third column, `flags`, lists what is unusual about an image that is
used: look at it before you use its mask. `--odd-masks reject` rejects masks that have a flag. An image that failed is
tried again by the same command.
"""


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
