"""Write small studies and predictions as jobs/train.py and jobs/infer.py write them."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.imaging import codecs
from lungseg.metrics import segmentation
from lungseg.predictions.parts import part_path
from lungseg.result_columns import PREDICTIONS, STUDY_ROWS, TEST_ROWS
from lungseg.schema import Counts, table
from lungseg.study.tested_images import study_rows

DrawPair = Callable[[int, int, int], tuple[U8, U8]]
DICE = {"pooled-fold0": (0.9, 0.8, 0.5, 0.7), "pooled-fold1": (0.95, 0.85)}
"""Approximate Dice of the held-out images of each finished run."""


def dice_row(run: str, number: int, dice: float, dataset: str = "north", role: str = "held-out") -> Row:
    tp = round(1000 * dice)
    counts = Counts(tp, 2000 - 2 * tp, 0, 8000)
    return {
        "run": run,
        "image_id": f"{run[-1]}_{number}",
        "dataset": dataset,
        "patient_id": f"p{number}",
        "class": "lung",
        "role": role,
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "tn": counts.tn,
        "dice": segmentation.dice(counts),
        "iou": segmentation.iou(counts),
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
    }


def write_run(folder: Path, name: str, rows: list[Row], train_on: list[str], epochs: int = 3, seed: int = 0) -> None:
    complete = [{**dict.fromkeys(TEST_ROWS.names), **row} for row in rows]
    storage.write_table(str(folder / "tested.parquet"), table(complete, TEST_ROWS))
    storage.write_json(
        str(folder / "run.json"),
        {
            "run": name,
            "protocol": "pooled",
            "train_on": train_on,
            "fold": int(name[-1]),
            "folds": 2,
            "seed": seed,
            "epochs": epochs,
            "trained_images": 6,
            "resolution": "64 px",
            "threshold": 0.5,
            "aggregation": "mean over images",
            "input": "64 px",
            "tested": [],
            "settings": {"model": {"encoder": "tiny"}, "choose_threshold": False, "epochs": epochs},
        },
    )


def _write_curve(folder: Path, name: str, epochs: int) -> None:
    rows = [{"run": name, "epoch": n, "loss": 1 / n, "held_out_dice": 1 - 0.3 / n} for n in range(1, epochs + 1)]
    storage.write_bytes(str(folder / "metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_study(folder: Path) -> Path:
    """Write a study of two finished runs on one dataset and a third run that has done one epoch."""
    for name, dice in DICE.items():
        rows = [dice_row(name, number, value) for number, value in enumerate(dice)]
        write_run(folder / name, name, rows, ["north"])
        _write_curve(folder / name, name, 3)
    _write_curve(folder / "pooled-fold2", "pooled-fold2", 1)
    names = [*DICE, "pooled-fold2"]
    storage.write_json(str(folder / "study.json"), {"study": "trial", "runs": names, "settings": {}})
    write_study_rows(folder, "pooled", "north", ["pooled-fold0", "pooled-fold1"])
    return folder


def write_study_rows(folder: Path, protocol: str, train_on: str, names: list[str], cross: float | None = None) -> None:
    """Write study.parquet of these runs. cross: Dice on two images of a dataset that none was trained on."""
    rows = []
    for name in names:
        rows_of_run = storage.read_table(str(folder / name / "tested.parquet")).to_pylist()
        if cross is not None:
            cross_rows = [dice_row(name, number, cross + number / 100, "south", "cross") for number in range(2)]
            rows_of_run += [
                {**dict.fromkeys(TEST_ROWS.names), **row, "image_id": f"s{i}"} for i, row in enumerate(cross_rows)
            ]
        rows += study_rows(rows_of_run, protocol, [train_on], int(name[-1]))
    storage.write_table(str(folder / "study.parquet"), table(rows, STUDY_ROWS))


def _predicted(folder: Path, number: int, pair: tuple[U8, U8]) -> Row:
    """Write an image and its mask; return a prediction: the mask moved by `number` px."""
    image, truth = pair
    mask = np.roll(truth, number, axis=0)
    for kind, array in (("images", image), ("masks", truth * np.uint8(255))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / f"{number}.png"), array)
    counts = segmentation.count_pixels(mask, truth)
    hd95, assd = segmentation.surface_distances(mask, truth)
    return {
        "image_id": f"image_{number}",
        "dataset": "north",
        "patient_id": "secret-patient",
        "status": "ok",
        "codes": [],
        "flags": [],
        "message": "",
        "source_uri": str(folder / "images" / f"{number}.png"),
        "mask_uris": [str(folder / "masks" / f"{number}.png")],
        "height": image.shape[0],
        "width": image.shape[1],
        "mask": codecs.encode_rle(mask),
        "area_px": int(mask.sum()),
        "components": 2,
        "iou": segmentation.iou(counts),
        "dice": segmentation.dice(counts),
        "threshold": 0.5,
        "model_name": "pooled-fold0",
        "model": "feed",
        "pixel_accuracy": segmentation.pixel_accuracy(counts),
        "hd95_px": hd95,
        "assd_px": assd,
        "seen_in_training": False,
    }


def without_reference(row: Row) -> Row:
    names = ("iou", "dice", "pixel_accuracy", "hd95_px", "assd_px")
    return {**row, **dict.fromkeys(names), "mask_uris": []}


def _not_predicted(image_id: str, status: str, code: str) -> Row:
    known = {"image_id": image_id, "dataset": "north", "source_uri": f"/gone/{image_id}.png", "mask_uris": []}
    return {**dict.fromkeys(PREDICTIONS.names), **known, "status": status, "codes": [code], "threshold": 0.5}


def write_predictions(folder: Path, rows: list[Row], planned: int | None = None) -> None:
    """Write an inference, two rows per part. planned: number of images of an interrupted inference."""
    for part, start in enumerate(range(0, len(rows), 2)):
        path = part_path(str(folder), part)
        complete = [{**dict.fromkeys(PREDICTIONS.names), **row} for row in rows[start : start + 2]]
        storage.write_table(path, table(complete, PREDICTIONS))
    plan = {
        "archive": "/archive",
        "checkpoints": ["/runs"],
        "model_name": "pooled-fold0",
        "model": "feed",
        "runs": ["pooled-fold0"],
        "epochs": [3],
        "threshold": 0.5,
        "tta": "none",
        "postprocess": {"lungs": False},
        "images": planned or len(rows),
    }
    storage.write_json(str(folder / "plan.json"), plan)
    if planned is None:
        storage.write_json(str(folder / "predictions.json"), {"images": len(rows)})


def write_archive(folder: Path, draw_pair: DrawPair) -> list[Row]:
    """Write an archive and return its prediction rows.

    Four images were unseen in training, two seen, one has no reference mask, two could not be predicted.
    """
    rows = [_predicted(folder, number, draw_pair(number, 96, 80 + 4 * number)) for number in range(7)]
    for row in rows[4:6]:
        row["seen_in_training"] = True
    rows[6] = {**without_reference(rows[6]), "codes": ["mask_size"]}
    rows.append(_not_predicted("damaged", "rejected", "undecodable"))
    return [*rows, _not_predicted("lost", "failed", "unreadable")]
