"""Predictions to files that other tools open: PNG masks, overlays, COCO annotations, DICOM segmentations."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ExportSettings
from lungseg.data import images
from lungseg.data.dicom import is_dicom
from lungseg.data.dicom_seg import encode_segmentation
from lungseg.errors import InputError, LungsegError, SettingsError
from lungseg.model import shape
from lungseg.pipelines.chosen import asked, choose, claim, predicted, require_apart, whole_parts
from lungseg.pipelines.cluster import connect
from lungseg.pipelines.overlays import read_picture
from lungseg.pipelines.parts import read_part
from lungseg.pipelines.progress import ProgressLine
from lungseg.pipelines.sizing import require_cpus
from lungseg.schema import PREDICTIONS

logger = logging.getLogger(__name__)

U8 = NDArray[np.uint8]
Row = dict[str, Any]
_Written = tuple[bytes, str, str]  # a file, its suffix, and what there is to say of it

_PREDICTION, _REFERENCE = (0, 176, 255), (233, 180, 86)  # BGR; as in the report
_HEAD = 512  # bytes, enough to tell DICOM
_TOLD = 5


def run(settings: ExportSettings) -> None:
    """Write the chosen rows of a folder of predictions as files.

    Raises:
        LungsegError: there are no predictions, the query cannot be asked, or a name leaves the output folder.

    """
    folder, out = _folder(settings), storage.resolve(settings.out)
    asked(PREDICTIONS.empty_table(), settings.where)  # tells of a query that cannot be asked before anything is done
    require_apart(folder, out)
    paths = whole_parts(folder)
    chosen = choose(paths, settings.where)
    claim(out, folder, settings)
    connect()
    require_cpus(1)
    counts: Counter[str] = Counter()
    notes: list[str] = []
    coco: list[Row] = []
    line = ProgressLine(logger)
    for number, done in enumerate(_over_cluster(chosen, settings, out), start=1):
        if done["error"]:
            raise InputError(done["error"])
        counts.update(done["counts"])
        notes += done["notes"]
        coco += done["coco"]
        line.show(f"exported {number} of {len(paths)} parts")
    coco.sort(key=lambda row: (row["dataset"], row["image_id"], row["source_uri"]))  # parts end in any order
    if "coco" in settings.formats:
        storage.write_json(storage.join(out, "annotations.json"), _as_coco(coco, folder))
    for note in notes[:_TOLD]:
        logger.warning("%s", note)
    if len(notes) > _TOLD:
        logger.warning("and %d more", len(notes) - _TOLD)
    said = ", ".join(f"{counts[name]} {name}" for name in settings.formats)
    logger.info("%d of %d rows chosen; written to %s: %s", counts["chosen"], counts["rows"], out, said)
    if not counts["chosen"]:
        logger.warning("no row was chosen: --where %r holds for none that has a mask", settings.where)
        return
    lacking = [name for name in settings.formats if not counts[name]]
    if lacking:
        first = next(note for note in notes if note.startswith(f"no {lacking[0]} of "))
        raise InputError(f"not one of {counts['chosen']} rows could be exported as {', '.join(lacking)}: {first}")


def _folder(settings: ExportSettings) -> str:
    """Find the predictions that are meant."""
    if not settings.predictions:
        raise SettingsError("no predictions named: pass --predictions FOLDER (the --out of jobs/infer.py)")
    folder = storage.resolve(settings.predictions)
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder: pass the --out of jobs/infer.py")
    if not storage.exists(storage.join(folder, "predictions.json")):
        raise InputError(
            f"{folder}: no predictions.json in it, expected what a finished jobs/infer.py wrote: finish it"
        )
    return folder


def _over_cluster(chosen: list[Row], settings: ExportSettings, out: str) -> Iterator[dict[str, Any]]:
    export = functools.partial(_export_part, settings=settings, out=out)
    items = [{"part": json.dumps(part)} for part in chosen]
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(export).iter_rows():
        yield json.loads(row["done"])


def _export_part(item: Row, settings: ExportSettings, out: str) -> Row:
    """Export one part. What a user can mend is returned: raised in a task, Ray would turn it into a traceback."""
    cv2.setNumThreads(1)
    part = json.loads(item["part"])
    done: dict[str, Any] = {"counts": Counter(), "notes": [], "coco": [], "error": ""}
    try:
        table = read_part(part["path"])
        found = predicted(table)
        chosen = (found if part["rows"] is None else found.take(pa.array(part["rows"], pa.int64()))).to_pylist()
        done["counts"].update(rows=table.num_rows, chosen=len(chosen))
        for row in chosen:
            _export_row(row, settings, out, done)
    except LungsegError as refused:
        done["error"] = str(refused)
    return {"done": json.dumps(done)}


def _export_row(row: Row, settings: ExportSettings, out: str, done: dict[str, Any]) -> None:
    try:
        mask = images.decode_rle(row["mask"], row["height"], row["width"])
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
    return images.encode_image(mask * np.uint8(255)), ".png", ""


def _write_overlay(row: Row, mask: U8, settings: ExportSettings) -> _Written:
    picture, reference, note = read_picture(row)
    if picture.shape != mask.shape:
        raise InputError(f"{row['source_uri']} has another size than its mask: it was changed")
    drawn = images.encode_image(draw_overlay(picture, mask, reference, settings.overlay_px))
    return drawn, ".png", note if row["dice"] is not None and reference is None else ""


def _write_segmentation(row: Row, mask: U8, settings: ExportSettings) -> _Written:  # noqa: ARG001
    if not is_dicom(storage.read_range(row["source_uri"], 0, _HEAD)):
        raise InputError(f"{row['source_uri']} is no DICOM file")
    right, left = shape.split(mask)
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


def _as_coco(rows: list[Row], folder: str) -> dict[str, Any]:
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
