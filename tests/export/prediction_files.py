"""Write small predictions as jobs/infer.py writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.imaging import codecs
from lungseg.inference.part_plan import write_part
from lungseg.predictions.parts import part_path
from lungseg.result_columns import PREDICTIONS
from lungseg.storage.files import digest_bytes
from tests.imaging.dicom.dicom_files import write_dicom

DrawPair = Callable[[int, int, int], tuple[U8, U8]]


def prediction_row(image_id: str, source: str, mask: U8, **changes: Any) -> Row:
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1] if xs.size else []
    return {
        **dict.fromkeys(PREDICTIONS.names),
        "image_id": image_id,
        "dataset": "north",
        "source_uri": source,
        "mask_uris": [],
        "status": "ok",
        "codes": [],
        "flags": [],
        "message": "",
        "height": height,
        "width": width,
        "mask": codecs.encode_rle(mask),
        "area_px": int(mask.sum()),
        "bbox": box,
        "mean_probability": 0.9,
        "model_name": "pooled-fold0",
        "model": "feed",
        **changes,
    }


def write_predictions(folder: Path, draw_pair: DrawPair) -> Path:
    """Write two parts: two PNG images; a DICOM image, an empty mask, and a rejected image."""
    rows = []
    for number in range(2):
        image, mask = draw_pair(number, 90 + number, 80)
        path = folder.parent / f"{number}.png"
        cv2.imwrite(str(path), image)
        rows.append(prediction_row(f"png_{number}", str(path), mask, dice=0.8 + 0.1 * number))
    image, mask = draw_pair(7, 64, 72)
    dicom = folder.parent / "x.dcm"
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    dicom.write_bytes(write_dicom(image.astype(np.uint16), **uids))
    rows.append(prediction_row("radiograph", str(dicom), mask, dice=0.95))
    rows.append(prediction_row("empty", str(folder.parent / "0.png"), np.zeros((90, 80), np.uint8)))
    rejected = prediction_row(
        "damaged", str(folder.parent / "none.png"), mask, status="rejected", codes=["undecodable"]
    )
    rows.append({**rejected, "mask": None, "bbox": None, "area_px": None})
    replace_part(folder, 0, rows[:2])
    replace_part(folder, 1, rows[2:])
    return folder


def replace_part(folder: Path, number: int, rows: list[Row]) -> str:
    """Write a part and record the digests of all parts, as a finished inference does."""
    path = part_path(str(folder), number)
    write_part(path, rows, "digest")
    parts = [{"name": path.name, "sha256": digest_bytes(path.read_bytes())} for path in folder.glob("rows/*.parquet")]
    storage.write_json(str(folder / "predictions.json"), {"parts": parts})
    storage.write_json(str(folder / "plan.json"), {"archive": str(folder.parent / "films")})
    return path
