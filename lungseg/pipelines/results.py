"""What a study's runs and infer's rows come to: their files read, their figures taken as means over images."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lungseg import storage
from lungseg.data.manifest import counted_codes
from lungseg.errors import InputError
from lungseg.model import statistics
from lungseg.pipelines.matrix import Matrix, mean_of, patient_of, summarise
from lungseg.pipelines.parts import part_files, read_part
from lungseg.schema import USABLE

Row = dict[str, Any]

MEASURES = ("dice", "iou", "pixel_accuracy")
DISTANCES = ("hd95_px", "assd_px")
SEEN = {True: "seen", False: "unseen", None: "unknown"}
_DICE = ("low", "high", "sd", "median", "p5")  # of statistics.Summary


@dataclass(frozen=True)
class Line:
    """One line of a table: what it is about, its figures, and the Dice of each image behind them."""

    about: Row
    figures: Row
    dice: tuple[float, ...]

    def as_json(self) -> Row:
        """Join what it is about with its figures."""
        return {**self.about, **self.figures}


@dataclass(frozen=True)
class Table:
    """Runs that were trained on the same data sets in the same way.

    lines: one a run, role and data set. joint: one a role and data set over all these runs, each image once; an image
    that several runs were tested on (a cross one) counts with its mean over them. Empty for a single run.
    """

    about: Row
    lines: tuple[Line, ...]
    joint: tuple[Line, ...]

    def summary(self) -> tuple[Line, ...]:
        """Lines that count each image once: the joint ones, or the only run's."""
        return self.joint or self.lines


@dataclass(frozen=True)
class Study:
    """A study as its folder shows it.

    dealt: number of folds, and the seed by which they were dealt. curves: rows of metrics.jsonl by run. unfinished: a
    row a run that is. matrix: what study.parquet comes to.
    """

    name: str
    folder: str
    runs: tuple[str, ...]
    tables: tuple[Table, ...]
    curves: dict[str, list[Row]]
    unfinished: tuple[Row, ...]
    matrix: Matrix
    dealt: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True)
class Predictions:
    """What infer wrote; about: plan and counts; reasons: rows by data set, status and reason code; rows: no masks."""

    about: Row
    lines: tuple[Line, ...]
    reasons: tuple[Row, ...]
    rows: tuple[Row, ...]


def read_study(folder: str) -> Study:
    """Read a study's runs, finished or not.

    Raises:
        InputError: the folder is no study, none of its runs is finished, or a file of it is damaged.

    """
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder, expected a study: pass --study FOLDER (jobs/train.py makes it)")
    path = storage.join(folder, "study.json")
    if not storage.exists(path):
        raise InputError(
            f"{folder}: no study.json in it, expected the folder of a study: pass OUT/STUDY of jobs/train.py"
        )
    study = storage.read_json(path)
    states = study.get("states", {})
    names = tuple(name for name in study["runs"] if not _of_another(states.get(name, {})))
    done = [name for name in names if storage.exists(storage.join(folder, name, "run.json"))]
    if not done:
        raise InputError(
            f"{folder}: none of {len(names)} runs has a run.json, expected one finished run or more: "
            "run the same jobs/train.py command again, it goes on"
        )
    grouped: dict[str, list[tuple[Row, list[Row]]]] = defaultdict(list)
    for name in done:
        summary = storage.read_json(storage.join(folder, name, "run.json"))
        tested = storage.read_table(storage.join(folder, name, "tested.parquet")).to_pylist()
        grouped[storage.digest([_alike(summary)])].append((summary, tested))
    curves = {name: _read_curve(storage.join(folder, name, "metrics.jsonl")) for name in names}
    unfinished = tuple(
        {"run": name, **_state(states.get(name, {})), "epochs": len(curves[name])} for name in names if name not in done
    )
    tables = tuple(_table(runs) for runs in grouped.values())
    dealt = tuple(study.get("settings", {}).get(name) for name in ("folds", "seed"))
    return Study(study["study"], folder, names, tables, curves, unfinished, summarise(read_rows(folder)), dealt)


def read_rows(folder: str) -> list[Row]:
    """Read a study's rows, one an image and run; none before a run is finished.

    Rows of an earlier command's runs, of other settings or data, are left out: until a study that was begun anew ends,
    they are all that the file has.

    Raises:
        InputError: a file is damaged.

    """
    path = storage.join(folder, "study.parquet")
    rows = storage.read_table(path).to_pylist() if storage.exists(path) else []
    states = storage.read_json(storage.join(folder, "study.json")).get("states", {})
    return [row for row in rows if not _of_another(states.get(row["run"], {}))]


def _of_another(state: Row) -> bool:
    """Whether a run is an earlier command's, of other settings or data: its figures do not belong with these."""
    return state.get("state") == "finished" and not state["in_results"]


def _state(state: Row) -> Row:
    reason = state.get("reason")
    return {"state": f"failed: {reason}" if reason else "not finished"}


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
    return Predictions(about, _prediction_lines(rows), _reasons(rows), tuple(rows))


def figures(rows: Sequence[Row]) -> Row:
    """Take per-image means of the rows that were compared with a reference; None where there is none.

    dice_low, dice_high: 95 % interval of the mean Dice, by a bootstrap over patients; None for fewer than two.
    dice_sd, dice_median, dice_p5: standard deviation, median and 5th percentile of the images' Dice.
    """
    compared = [row for row in rows if row["dice"] is not None]
    dice = [row["dice"] for row in compared]
    found = statistics.summarise(dice, [patient_of(row) for row in compared]) if compared else None
    return {
        "images": len(rows),
        **{name: mean_of(row[name] for row in compared) for name in MEASURES},
        **{f"dice_{name}": getattr(found, name) if found else None for name in _DICE},
        "dice_min": min(dice, default=None),
    }


def _alike(summary: Row) -> Row:
    """Say what runs of one table have in common, so that its title is true for each of its figures."""
    names = ("protocol", "train_on", "folds", "resolution", "aggregation", "input")
    settings = summary["settings"]
    # Not what a run came to: with early stopping and a chosen threshold each fold has its own.
    threshold = "chosen on a validation fold" if settings["choose_threshold"] else summary["threshold"]
    more = {"epochs": settings["epochs"], "threshold": threshold, "encoder": settings["model"]["encoder"]}
    return {**{name: summary[name] for name in names}, **more}


def _table(runs: Sequence[tuple[Row, list[Row]]]) -> Table:
    lines: list[Line] = []
    every: list[Row] = []
    for summary, tested in runs:
        every += tested
        lines += _tested_lines(tested, {"run": summary["run"], "fold": summary["fold"]})
    about = {**_alike(runs[0][0]), "runs": len(runs)}
    return Table(about, tuple(lines), tuple(_tested_lines(_each_once(every), {})) if len(runs) > 1 else ())


def _tested_lines(rows: Sequence[Row], about: Row) -> list[Line]:
    """Make a line a role and data set, the held-out ones first."""
    parts = _group(rows, ("role", "dataset"))
    return [
        Line({**about, "role": role, "dataset": dataset}, figures(part), tuple(row["dice"] for row in part))
        for (role, dataset), part in sorted(parts.items(), key=lambda pair: (pair[0][0] != "held-out", pair[0]))
    ]


def _each_once(rows: Sequence[Row]) -> list[Row]:
    """Join the rows of one image in one role to one, with the mean over the runs that were tested on it."""
    return [
        {**part[0], **{name: mean_of(row[name] for row in part) for name in MEASURES}}
        for part in _group(rows, ("role", "dataset", "image_id")).values()
    ]


def _prediction_lines(rows: Sequence[Row]) -> tuple[Line, ...]:
    """Make a line a data set and whether the model was trained on its images, the unseen first."""
    parts = _group([row for row in rows if row["status"] in USABLE], ("dataset", "seen_in_training"))
    lines = []
    for (dataset, seen), part in sorted(parts.items(), key=lambda pair: (pair[0][0], bool(pair[0][1]))):
        dice = tuple(row["dice"] for row in part if row["dice"] is not None)
        values = {
            **figures(part),
            **{name: mean_of(row[name] for row in part if row[name] is not None) for name in DISTANCES},
            "without_reference": len(part) - len(dice),
            "without_distance": sum(1 for row in part if row["dice"] is not None and row["hd95_px"] is None),
        }
        lines.append(Line({"dataset": dataset, "training": SEEN[seen]}, values, dice))
    return tuple(lines)


def _reasons(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Count the rows that have something to say, by data set, status and reason code."""
    said = [row for row in rows if row["status"] not in USABLE or row["error"]]
    counts = Counter(
        (row["dataset"], row["status"], code)
        for row in said
        for code in counted_codes(row["status"], row["error"] or "") or [(row["error"] or "").split(":")[0]]
    )
    names = ("dataset", "status", "reason", "images")
    return tuple(dict(zip(names, (*key, count), strict=True)) for key, count in sorted(counts.items()))


def _read_part(path: str) -> list[Row]:
    """Read a part without its masks, which only the few images that are shown need; each row says where it lies."""
    rows: list[Row] = read_part(path).drop_columns(["mask"]).to_pylist()
    return [{**row, "part": path, "position": i} for i, row in enumerate(rows)]


def _read_curve(path: str) -> list[Row]:
    """Read metrics.jsonl, one row an epoch; nothing where a run has not come that far."""
    if not storage.exists(path):
        return []
    try:
        rows = [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
    except ValueError:
        raise InputError(f"{path}: not one JSON object a line, it was damaged: delete it, or train again") from None
    return [row for _, row in sorted({row["epoch"]: row for row in rows}.items())]


def _group(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    parts: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        parts[tuple(row[name] for name in names)].append(row)
    return parts
