"""Write one prediction in each export format."""

import json
from collections import Counter
from typing import Any

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.arrow import pa
from lungseg.config import ExportFormat, ExportSettings
from lungseg.errors import ImageError, InputError, TaskResult
from lungseg.export import nnunet
from lungseg.export.coco_file import describe_masks
from lungseg.export.overlay_file import encode_overlay
from lungseg.export.selection import rows_with_mask
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.imaging.dicom.segmentation import encode_segmentation, invalid_elements
from lungseg.imaging.orientation import other_shape
from lungseg.ingest.file_names import MAX_ID, shorten
from lungseg.predictions.class_masks import read_class_masks, read_lungs, read_shown_masks, read_sides
from lungseg.predictions.image_files import is_compared, orientation_of, read_image_and_masks
from lungseg.predictions.parts import read_part
from lungseg.predictions.ranking import require_reliable

_FileContent = tuple[bytes, str, list[str]]  # content, suffix; notes, or names of emptied DICOM elements
_HEAD = 512  # bytes, enough to recognise DICOM


def export_part(item: Row, settings: ExportSettings, out: str) -> Row:
    """Export the selected rows of a part; `result` is a TaskResult of `counts`, `refused`, `emptied`, `notes`, `coco`.

    counts: rows, selected rows, files by format, and `refused` files. refused: files by format and reason code, for
    rows that could not be exported. emptied: DICOM segmentations by element that is empty because its value in the
    image's file is invalid. All as JSON.
    """
    cv2.setNumThreads(1)
    return {"result": TaskResult.of(_export_part, json.loads(item["part"]), settings, out).to_json()}


def _export_part(part: Row, settings: ExportSettings, out: str) -> Row:
    result: dict[str, Any] = {"counts": Counter(), "refused": {}, "emptied": Counter(), "notes": [], "coco": []}
    table = read_part(part["path"])
    rows = rows_with_mask(table)
    selected = (rows if part["rows"] is None else rows.take(pa.array(part["rows"], pa.int64()))).to_pylist()
    result["counts"].update(rows=table.num_rows, selected=len(selected))
    for row in selected:
        row["nnunet_folder"] = part.get("nnunet_folders", {}).get(row["dataset"], "")
        row["max_doubt"] = part.get("max_doubt")
        for kind in settings.formats:
            try:
                _export_row(row, kind, settings, out, result)
            except ImageError as error:  # the other rows do not depend on this one
                _refuse(result, kind, row, error)
    return result


def _refuse(result: dict[str, Any], kind: str, row: Row, error: ImageError) -> None:
    result["notes"].append(f"no {kind} of {row['image_id']}: {error.message}")
    result["counts"]["refused"] += 1
    reasons = result["refused"].setdefault(kind, Counter())
    reasons[error.code] += 1


def _export_row(row: Row, kind: str, settings: ExportSettings, out: str, result: dict[str, Any]) -> None:
    """Write one row in one format.

    Raises:
        ImageError: the row cannot be exported, and no file was written.

    """
    row = {**row, "image_id": shorten(row["image_id"], row["image_id"], MAX_ID)}
    files: dict[str, bytes] = {}
    notes: list[str] = []
    try:
        if kind == "coco":
            result["coco"].append(describe_masks(row, read_shown_masks(row, orientation_of(row))))
        else:
            files, notes = _encode(row, kind, None, settings)
    except ImageError:
        raise
    except InputError as error:
        raise ImageError("unreadable", str(error)) from None
    for target, content in {_target(row, out, f"{kind}/{path}"): content for path, content in files.items()}.items():
        storage.write_bytes(target, content)
    result["counts"][kind] += 1
    result["emptied"].update(notes if kind == "dicom-seg" else ())
    if notes:
        note = f"empty, because invalid in the image: {', '.join(notes)}" if kind == "dicom-seg" else "; ".join(notes)
        result["notes"].append(f"{kind} of {row['image_id']}: {note}")


def _encode(row: Row, kind: str, lungs: U8 | None, settings: ExportSettings) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a row by their path below the format's folder, and notes."""
    if kind == nnunet.FORMAT:
        return nnunet.encode_case(row, read_class_masks(row, lungs)), []
    if kind in _MASKS:
        masks = ((f"{row['dataset']}/{row['image_id']}{suffix}", mask) for suffix, mask in _MASKS[kind](row, lungs))
        return {path: codecs.encode_image(mask * np.uint8(255)) for path, mask in masks}, []
    content, suffix, notes = _WRITERS[kind](row, lungs, settings)
    return {f"{row['dataset']}/{row['image_id']}{suffix}": content}, notes


def encode_row(row: Row, kind: ExportFormat, lungs: U8 | None, settings: ExportSettings) -> list[bytes]:
    """Return the files of a row in a format with files for each image.

    lungs: the mask of both lungs, u8[H,W] in {0,1} as stored, if it is decoded.

    Raises:
        InputError: the row cannot be written in this format.

    """
    return list(_encode(row, kind, lungs, settings)[0].values())


def _target(row: Row, out: str, path: str) -> str:
    try:
        target = storage.join(out, path)
    except InputError as error:
        raise ImageError("unsafe_target", str(error)) from None
    if target in (row["source_uri"], *(row["mask_uris"] or ())):
        raise ImageError(
            "unsafe_target", f"{target} is an input image or reference mask of the predictions: pass another --out"
        )
    return target


def _lungs(row: Row, lungs: U8 | None) -> list[tuple[str, U8]]:
    return [(".png", read_lungs(row) if lungs is None else lungs)]


def _each_lung(row: Row, lungs: U8 | None) -> list[tuple[str, U8]]:
    sides = read_sides(row, orientation_of(row), lungs)
    return [(f".{name.removesuffix('_lung')}.png", mask) for name, mask in sides.items()]


def _each_class(row: Row, lungs: U8 | None) -> list[tuple[str, U8]]:
    return [(f".{name}.png", mask) for name, mask in read_class_masks(row, lungs).items()]


_MASKS = {"masks": _lungs, "lung-masks": _each_lung, "class-masks": _each_class}
"""Masks of a row by suffix of their file."""


def _encode_overlay(row: Row, lungs: U8 | None, settings: ExportSettings) -> _FileContent:
    image, references, note = read_image_and_masks(row)
    if image.shape != other_shape((row["height"], row["width"]), orientation_of(row)):
        raise ImageError("changed", f"{row['source_uri']} and its predicted mask differ in size: the image was changed")
    notes = [note] if note and is_compared(row) and not references else []
    return encode_overlay(row, image, lungs, references, settings.overlay_px), ".png", notes


def _encode_segmentation(row: Row, lungs: U8 | None, settings: ExportSettings) -> _FileContent:
    if not is_dicom(storage.read_range(row["source_uri"], 0, _HEAD)):
        raise ImageError("not_dicom", f"{row['source_uri']} is not a DICOM file")
    if not settings.include_doubtful:
        require_reliable(row, row.get("max_doubt"))
    content = storage.read_bytes(row["source_uri"])
    name = storage.name_of(row["source_uri"])
    masks = read_shown_masks(row, orientation_of(row), lungs)
    return encode_segmentation(content, masks, row["model"], name), ".dcm", invalid_elements(content, name)


_WRITERS = {"overlays": _encode_overlay, "dicom-seg": _encode_segmentation}
