"""What a study's runs and infer's rows come to: their files read, their figures taken as means over images."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lungseg import storage
from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.report.result_table import METRICS, ResultLine, compute_metrics, group_by
from lungseg.schema import is_superseded
from lungseg.study.cross_dataset import CrossDatasetResults, mean_defined, summarise


@dataclass(frozen=True)
class RunTable:
    """Runs that were trained on the same data sets in the same way.

    lines: one a run, role and data set. joint: one a role and data set over all these runs, each image once; an image
    that several runs were tested on (a cross one) counts with its mean over them. Empty for a single run.
    """

    about: Row
    lines: tuple[ResultLine, ...]
    joint: tuple[ResultLine, ...]

    def summary(self) -> tuple[ResultLine, ...]:
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
    tables: tuple[RunTable, ...]
    curves: dict[str, list[Row]]
    unfinished: tuple[Row, ...]
    matrix: CrossDatasetResults
    dealt: tuple[int | None, int | None] = (None, None)


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
    names = tuple(name for name in study["runs"] if not is_superseded(states.get(name, {})))
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
    return [row for row in rows if not is_superseded(states.get(row["run"], {}))]


def _state(state: Row) -> Row:
    reason = state.get("reason")
    return {"state": f"failed: {reason}" if reason else "not finished"}


def _alike(summary: Row) -> Row:
    """Say what runs of one table have in common, so that its title is true for each of its figures."""
    names = ("protocol", "train_on", "folds", "resolution", "aggregation", "input")
    settings = summary["settings"]
    # Not what a run came to: with early stopping and a chosen threshold each fold has its own.
    threshold = "chosen on a validation fold" if settings["choose_threshold"] else summary["threshold"]
    more = {"epochs": settings["epochs"], "threshold": threshold, "encoder": settings["model"]["encoder"]}
    return {**{name: summary[name] for name in names}, **more}


def _table(runs: Sequence[tuple[Row, list[Row]]]) -> RunTable:
    lines: list[ResultLine] = []
    every: list[Row] = []
    for summary, tested in runs:
        every += tested
        lines += _tested_lines(tested, {"run": summary["run"], "fold": summary["fold"]})
    about = {**_alike(runs[0][0]), "runs": len(runs)}
    return RunTable(about, tuple(lines), tuple(_tested_lines(_each_once(every), {})) if len(runs) > 1 else ())


def _tested_lines(rows: Sequence[Row], about: Row) -> list[ResultLine]:
    """Make a line a role and data set, the held-out ones first."""
    parts = group_by(rows, ("role", "dataset"))
    return [
        ResultLine(
            {**about, "role": role, "dataset": dataset}, compute_metrics(part), tuple(row["dice"] for row in part)
        )
        for (role, dataset), part in sorted(parts.items(), key=lambda pair: (pair[0][0] != "held-out", pair[0]))
    ]


def _each_once(rows: Sequence[Row]) -> list[Row]:
    """Join the rows of one image in one role to one, with the mean over the runs that were tested on it."""
    return [
        {**part[0], **{name: mean_defined(row[name] for row in part) for name in METRICS}}
        for part in group_by(rows, ("role", "dataset", "image_id")).values()
    ]


def _read_curve(path: str) -> list[Row]:
    """Read metrics.jsonl, one row an epoch; nothing where a run has not come that far."""
    if not storage.exists(path):
        return []
    try:
        rows = [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
    except ValueError:
        raise InputError(f"{path}: not one JSON object a line, it was damaged: delete it, or train again") from None
    return [row for _, row in sorted({row["epoch"]: row for row in rows}.items())]
