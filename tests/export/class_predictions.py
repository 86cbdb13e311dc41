"""Write predictions of several overlapping classes."""

from pathlib import Path

import cv2
import numpy as np

from lungseg.arrays import U8, Row
from lungseg.imaging import codecs
from tests.export.prediction_files import prediction_row, replace_part
from tests.imaging.dicom.dicom_files import write_dicom

CLASSES = ("right_lung", "left_lung", "heart", "opacity")
_SHAPE = (96, 80)


def draw_masks(with_opacity: bool = True) -> dict[str, U8]:
    """Draw a chest: the heart covers a part of both lungs, and the opacity is inside the right one."""
    masks = {name: np.zeros(_SHAPE, np.uint8) for name in CLASSES}
    cv2.ellipse(masks["right_lung"], (22, 48), (14, 34), 4, 0, 360, 1, -1)
    cv2.ellipse(masks["left_lung"], (58, 48), (14, 34), -4, 0, 360, 1, -1)
    cv2.ellipse(masks["heart"], (44, 60), (14, 12), 0, 0, 360, 1, -1)
    if with_opacity:
        cv2.ellipse(masks["opacity"], (20, 40), (6, 9), 0, 0, 360, 1, -1)
    return masks


def class_row(image_id: str, source: str, masks: dict[str, U8], **changes: object) -> Row:
    """Return a row of these masks; `mask` is the union of both lungs."""
    lungs = masks.get("right_lung", 0) | masks.get("left_lung", 0) if "right_lung" in masks else None
    row = prediction_row(image_id, source, next(iter(masks.values())) if lungs is None else lungs)
    entries = [
        {
            **dict.fromkeys(("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")),
            "class": name,
            "mask": codecs.encode_rle(mask),
            "threshold": 0.5,
            "area_px": int(mask.sum()),
            "components": 1,
            "mean_probability": 0.8,
            "doubt": 0.1,
        }
        for name, mask in masks.items()
    ]
    return {**row, **({"mask": None} if lungs is None else {}), "classes": entries, "doubt": 0.05, **changes}


def write_class_predictions(folder: Path) -> Path:
    """Write a part with a DICOM and a PNG image; the second has no opacity."""
    image = np.linspace(40, 200, _SHAPE[0] * _SHAPE[1]).reshape(_SHAPE).astype(np.uint8)
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    folder.parent.joinpath("x.dcm").write_bytes(write_dicom(image.astype(np.uint16), **uids))
    cv2.imwrite(str(folder.parent / "0.png"), image)
    rows = [
        class_row("radiograph", str(folder.parent / "x.dcm"), draw_masks()),
        class_row("png", str(folder.parent / "0.png"), draw_masks(with_opacity=False)),
    ]
    replace_part(folder, 0, rows)
    return folder
