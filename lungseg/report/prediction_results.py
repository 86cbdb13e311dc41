"""Read and summarise predictions."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lungseg import storage
from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.ingest.reason_codes import counted_codes
from lungseg.predictions.parts import part_files, read_part
from lungseg.predictions.ranking import questions
from lungseg.report.class_results import class_rows, summarise_measures
from lungseg.report.detection_results import DetectionLine, ImageKey, detect_in_predictions
from lungseg.report.result_table import TRAINING_LABELS, ResultLine, compute_metrics, group_by
from lungseg.schema import USABLE
from lungseg.storage.json_files import Finite, JsonFields, Whole
from lungseg.study.tested_images import mean_defined

DISTANCES = ("hd95_px", "assd_px")


class _PlanFields(JsonFields):
    archive: str
    checkpoints: list[str]
    model: str
    model_name: str
    runs: list[str]
    epochs: list[Whole]
    threshold: Finite | None = None  # of the one class lung
    thresholds: dict[str, Finite] = Field(default_factory=dict)  # of several classes
    tta: str
    postprocess: dict[str, Any]
    images: Whole | None = None  # unknown while the archive is listed
    reference: str = ""


@dataclass(frozen=True)
class Predictions:
    """Results of an inference.

    about: its settings and counts. codes: images by dataset, status and reason code or flag. rows: without masks;
    `part` and `position` locate each row. class_lines: of each class, where there are several; measures: of
    `summarise_measures`; detection: of classes that some images do not show.
    """

    about: Row
    lines: tuple[ResultLine, ...]
    codes: tuple[Row, ...]
    rows: tuple[Row, ...]
    class_lines: tuple[ResultLine, ...] = ()
    measures: tuple[Row, ...] = ()
    detection: tuple[DetectionLine, ...] = ()


def read_predictions(folder: str, least: float | None = None, normal: Collection[ImageKey] = ()) -> Predictions:
    """Read all parts; an interrupted inference has only some of them.

    least, normal: as in `detect_in_predictions`; without least there is no detection.

    Raises:
        InputError: the folder has no predictions, or a file is damaged.

    """
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder, expected predictions: pass the --out of lungseg infer")
    if not storage.exists(storage.join(folder, "plan.json")):
        raise InputError(f"{folder}: no plan.json, expected predictions: pass the --out of lungseg infer")
    plan = storage.read_json(storage.join(folder, "plan.json"), fields=_PlanFields)
    end = _read_end(storage.join(folder, "predictions.json"))
    rows = [row for part in part_files(folder) for row in _read_part(part)]
    names = ("archive", "checkpoints", "model", "model_name", "runs", "epochs", "tta", "postprocess")
    about = {
        "folder": folder,
        **{name: plan.get(name) for name in names},
        "threshold": _describe_threshold(plan),
        "aggregation": "mean over images",
        "resolution": "native size",
        "reference": plan.get("reference", ""),
        "complete": end is not None,
        "versions": end.get("versions", {}) if end else {},
        "planned": plan.get("images"),
        "inputs": len(rows),
        "predicted": sum(row["status"] in USABLE for row in rows),
        "flagged": sum(bool(questions(row)) for row in rows if row["status"] in USABLE),
        "counts": dict(sorted(Counter(row["status"] for row in rows).items())),
    }
    predicted = [row for row in rows if row["status"] in USABLE]
    return Predictions(
        about,
        _prediction_lines(predicted),
        _count_codes(rows),
        tuple(rows),
        _prediction_lines(class_rows(predicted), "class"),
        summarise_measures(predicted),
        () if least is None else tuple(detect_in_predictions(predicted, least, normal)),
    )


def _describe_threshold(plan: Row) -> float | str | None:
    """Return the threshold of a plan, or those of several classes in words."""
    thresholds = plan.get("thresholds") or {}
    return ", ".join(f"{name} {value:g}" for name, value in thresholds.items()) or plan.get("threshold")


class _EndFields(JsonFields):
    versions: dict[str, str] = Field(default_factory=dict)


def _read_end(path: str) -> Row | None:
    """Read predictions.json; None where the inference is not finished."""
    return storage.read_json(path, fields=_EndFields) if storage.exists(path) else None


def _prediction_lines(rows: Sequence[Row], *more: str) -> tuple[ResultLine, ...]:
    """Summarise images with a mask by dataset and whether the model was trained on them, unseen images first.

    more: columns that divide the images further, such as the class, in order of appearance.
    """
    groups = group_by(rows, ("dataset", "seen_in_training", *more))
    lines = []
    for (dataset, is_seen, *names), group in sorted(groups.items(), key=lambda item: (item[0][0], bool(item[0][1]))):
        dice = tuple(row["dice"] for row in group if row["dice"] is not None)
        metrics = {
            **compute_metrics(group),
            **{name: mean_defined(row[name] for row in group) for name in DISTANCES},
            "without_reference": len(group) - len(dice),
            "without_distance": sum(1 for row in group if row["dice"] is not None and row["hd95_px"] is None),
        }
        about = {"dataset": dataset, "training": TRAINING_LABELS[is_seen], **dict(zip(more, names, strict=True))}
        lines.append(ResultLine(about, metrics, dice))
    return tuple(lines)


def _count_codes(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Count images by dataset, status and reason code; flags have the status `flag`."""
    counts = Counter(
        (row["dataset"], row["status"], code) for row in rows for code in counted_codes(row["status"], row["codes"])
    )
    counts.update((row["dataset"], "flag", flag) for row in rows for flag in row["flags"] or ())
    names = ("dataset", "status", "code", "images")
    return tuple(dict(zip(names, (*key, count), strict=True)) for key, count in sorted(counts.items()))


def _read_part(path: str) -> list[Row]:
    """Read a part without its masks: only the few images that are drawn need them."""
    rows: list[Row] = read_part(path).drop_columns(["mask"]).to_pylist()
    for row in rows:
        for entry in row["classes"] or ():
            del entry["mask"]
    return [{**row, "part": path, "position": i} for i, row in enumerate(rows)]
