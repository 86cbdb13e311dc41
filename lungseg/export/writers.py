"""Write one prediction in each export format."""

import json
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config import ExportSettings
from lungseg.errors import InputError, TaskResult
from lungseg.export.selection import rows_with_mask
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.imaging.dicom.segmentation import encode_segmentation
from lungseg.inference import mask_shape
from lungseg.predictions.overlays import read_image_and_mask
from lungseg.predictions.parts import read_part

_Written = tuple[bytes, str, str]  # a file, its suffix, and what there is to say of it


_PREDICTION, _REFERENCE = (0, 176, 255), (233, 180, 86)  # BGR; as in the report


_HEAD = 512  # bytes, enough to tell DICOM


def export_part(item: Row, settings: ExportSettings, out: str) -> Row:
    """Export one part: `part` as JSON to `result`, a TaskResult of `counts`, `notes` and `coco`."""
    cv2.setNumThreads(1)
    return {"result": TaskResult.of(_export, json.loads(item["part"]), settings, out).to_json()}


def _export(part: Row, settings: ExportSettings, out: str) -> Row:
    done: dict[str, Any] = {"counts": Counter(), "notes": [], "coco": []}
    table = read_part(part["path"])
    found = rows_with_mask(table)
    chosen = (found if part["rows"] is None else found.take(pa.array(part["rows"], pa.int64()))).to_pylist()
    done["counts"].update(rows=table.num_rows, chosen=len(chosen))
    for row in chosen:
        _export_row(row, settings, out, done)
    return done


def _export_row(row: Row, settings: ExportSettings, out: str, done: dict[str, Any]) -> None:
    try:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
    except (ValueError, TypeError) as error:
        raise InputError(f"the mask of {row['image_id']} cannot be decoded ({error}): predict it again") from None
    writers = {"masks": _write_mask, "overlays": _write_overlay, "dicom-seg": _write_segmentation}
    for kind in settings.formats:
        if kind == "coco":
            done["coco"].append(_annotation(row))
            done["counts"][kind] += 1
            continue
        try:
            content, suffix, note = writers[kind](row, mask, settings)
        except InputError as error:  # the image has gone or changed, or is no DICOM
            done["notes"].append(f"no {kind} of {row['image_id']}: {error}")
            continue
        target = storage.join(out, kind, row["dataset"], f"{row['image_id']}{suffix}")
        if target in (row["source_uri"], *(row["mask_uris"] or ())):
            raise InputError(f"{target} is what was predicted or compared with: pass another --out")
        storage.write_bytes(target, content)
        done["counts"][kind] += 1
        if note:
            done["notes"].append(f"{kind} of {row['image_id']}: {note}")


def _write_mask(row: Row, mask: U8, settings: ExportSettings) -> _Written:  # noqa: ARG001
    return codecs.encode_image(mask * np.uint8(255)), ".png", ""


def _write_overlay(row: Row, mask: U8, settings: ExportSettings) -> _Written:
    picture, reference, note = read_image_and_mask(row)
    if picture.shape != mask.shape:
        raise InputError(f"{row['source_uri']} has another size than its mask: it was changed")
    drawn = codecs.encode_image(draw_overlay(picture, mask, reference, settings.overlay_px))
    return drawn, ".png", note if row["dice"] is not None and reference is None else ""


def _write_segmentation(row: Row, mask: U8, settings: ExportSettings) -> _Written:  # noqa: ARG001
    if not is_dicom(storage.read_range(row["source_uri"], 0, _HEAD)):
        raise InputError(f"{row['source_uri']} is not a DICOM file")
    right, left = mask_shape.split_lungs(mask)
    content = storage.read_bytes(row["source_uri"])
    name = storage.name_of(row["source_uri"])
    return encode_segmentation(content, {"right": right, "left": left}, row["model"], name), ".dcm", ""


def draw_overlay(picture: U8, mask: U8, reference: U8 | None, longest: int) -> NDArray[np.uint8]:
    """Draw the outlines of masks u8[H,W] in {0,1} on a picture u8[H,W], as u8[h,w,3] of at most `longest` px, BGR.

    Orange is the prediction, blue under it the reference.
    """
    height, width = picture.shape
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = cv2.cvtColor(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    thick = max(1, round(max(size) / 400))
    for outlined, colour, more in ((reference, _REFERENCE, 1), (mask, _PREDICTION, 0)):
        if outlined is None:
            continue
        shrunk = cv2.resize(outlined, size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shrunk, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, thick + more, cv2.LINE_AA)
    return drawn  # type: ignore[return-value]


def _annotation(row: Row) -> Row:
    names = ("image_id", "dataset", "source_uri", "height", "width", "mask", "area_px", "bbox", "mean_probability")
    return {name: row[name] for name in names}


def to_coco(rows: list[Row], folder: str) -> dict[str, Any]:
    """Make a COCO object file of rows; numbers follow the rows' order, an empty mask has an image and no annotation."""
    pictures: list[Row] = []
    annotations: list[Row] = []
    for number, row in enumerate(rows, start=1):
        name = f"{row['dataset']}/{row['image_id']}"
        size = {"height": row["height"], "width": row["width"]}
        pictures.append({"id": number, "file_name": row["source_uri"], "lungseg_id": name, **size})
        if not row["area_px"]:
            continue
        mask = {"size": [row["height"], row["width"]], "counts": row["mask"]}
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "segmentation": mask,
                "area": row["area_px"],
                "bbox": row["bbox"],
                "iscrowd": 0,
                "score": row["mean_probability"],
            }
        )
    return {
        "info": {"description": f"lungs predicted by lungseg, from {storage.name_of(folder)}"},
        "categories": [{"id": 1, "name": "lung", "supercategory": "anatomy"}],
        "images": pictures,
        "annotations": annotations,
    }
