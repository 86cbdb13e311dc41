"""Summarise the rows of an inference for the report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lungseg import storage
from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.ingest.reason_codes import counted_codes
from lungseg.predictions.parts import part_files, read_part
from lungseg.report.result_table import ResultLine, compute_metrics, group_by
from lungseg.schema import USABLE
from lungseg.study.cross_dataset import mean_defined

DISTANCES = ("hd95_px", "assd_px")


TRAINING_LABELS = {True: "seen", False: "unseen", None: "unknown"}


@dataclass(frozen=True)
class Predictions:
    """What infer wrote; about: plan and counts; codes: rows by data set, status and reason code; rows: no masks."""

    about: Row
    lines: tuple[ResultLine, ...]
    codes: tuple[Row, ...]
    rows: tuple[Row, ...]


def read_predictions(folder: str) -> Predictions:
    """Read infer's parts, all of them or as many as an interrupted infer left.

    Raises:
        InputError: the folder holds no predictions, or a file of it is damaged.

    """
    if not storage.exists(folder):
        raise InputError(
            f"{folder}: no such folder, expected predictions: pass --predictions FOLDER (jobs/infer.py makes it)"
        )
    if not storage.exists(storage.join(folder, "plan.json")):
        raise InputError(f"{folder}: no plan.json in it, expected predictions: pass the --out of jobs/infer.py")
    plan = storage.read_json(storage.join(folder, "plan.json"))
    end = storage.join(folder, "predictions.json")
    ended = storage.read_json(end) if storage.exists(end) else {}
    rows = [row for part in part_files(folder) for row in _read_part(part)]
    names = ("archive", "checkpoints", "model", "runs", "epochs", "threshold", "tta", "postprocess")
    about = {
        "folder": folder,
        **{name: plan.get(name) for name in names},
        "aggregation": "mean over images",
        "resolution": "native size",
        "complete": bool(ended),
        "planned": plan.get("images"),
        "inputs": len(rows),
        "counts": dict(sorted(Counter(row["status"] for row in rows).items())),
    }
    return Predictions(about, _prediction_lines(rows), _count_codes(rows), tuple(rows))


def _prediction_lines(rows: Sequence[Row]) -> tuple[ResultLine, ...]:
    """Make a line a data set and whether the model was trained on its images, the unseen first."""
    parts = group_by([row for row in rows if row["status"] in USABLE], ("dataset", "seen_in_training"))
    lines = []
    for (dataset, seen), part in sorted(parts.items(), key=lambda pair: (pair[0][0], bool(pair[0][1]))):
        dice = tuple(row["dice"] for row in part if row["dice"] is not None)
        values = {
            **compute_metrics(part),
            **{name: mean_defined(row[name] for row in part if row[name] is not None) for name in DISTANCES},
            "without_reference": len(part) - len(dice),
            "without_distance": sum(1 for row in part if row["dice"] is not None and row["hd95_px"] is None),
        }
        lines.append(ResultLine({"dataset": dataset, "training": TRAINING_LABELS[seen]}, values, dice))
    return tuple(lines)


def _count_codes(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Count images by dataset, status and reason code."""
    counts = Counter(
        (row["dataset"], row["status"], code) for row in rows for code in counted_codes(row["status"], row["codes"])
    )
    names = ("dataset", "status", "code", "images")
    return tuple(dict(zip(names, (*key, count), strict=True)) for key, count in sorted(counts.items()))


def _read_part(path: str) -> list[Row]:
    """Read a part without its masks, which only the few images that are shown need; each row says where it lies."""
    rows: list[Row] = read_part(path).drop_columns(["mask"]).to_pylist()
    return [{**row, "part": path, "position": i} for i, row in enumerate(rows)]
