"""Read the results of a study."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lungseg import storage
from lungseg.arrays import Row
from lungseg.errors import InputError
from lungseg.metrics.segmentation import PREPARED_REFERENCE
from lungseg.model.checkpoint_fields import StudyRuns
from lungseg.plurals import counted
from lungseg.report.detection_results import DetectionLine, detect_in_tests
from lungseg.report.result_table import METRICS, ResultLine, compute_metrics, group_by
from lungseg.report.training_record import training_record
from lungseg.schema import is_superseded
from lungseg.storage.json_files import Finite, JsonFields, Whole, check_fields, parse_json
from lungseg.storage.table_formats import STUDY_TABLE, TEST_TABLE
from lungseg.study.cross_dataset import CrossDatasetResults, summarise
from lungseg.study.tested_images import mean_defined, patient_key


class _StudyFields(StudyRuns):
    study: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)


class _Model(JsonFields):
    encoder: str


class _Settings(JsonFields):
    model: _Model
    choose_threshold: bool
    epochs: Whole


class _RunFields(JsonFields):
    run: str
    protocol: str
    train_on: list[str]
    fold: Whole
    folds: Whole
    resolution: str
    reference: str = PREPARED_REFERENCE
    aggregation: str
    input: str
    threshold: Finite
    settings: _Settings


class _EpochFields(JsonFields):
    epoch: Whole
    loss: float
    validation_dice: float | None = None
    held_out_dice: float | None = None


@dataclass(frozen=True)
class RunTable:
    """Results of runs that differ only in fold and seed.

    about: the settings that the runs share. lines: one per run, class, role and dataset. all_runs: one per class, role
    and dataset over all runs, each image once; an image tested by several runs counts with its mean over them. Empty
    for a single run. detection: of classes that some of the tested images do not show.
    """

    about: Row
    lines: tuple[ResultLine, ...]
    all_runs: tuple[ResultLine, ...]
    detection: tuple[DetectionLine, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether there are several classes, so that each line has to name its own."""
        return len({line.about["class"] for line in self.lines}) > 1

    def summary_lines(self) -> tuple[ResultLine, ...]:
        """Return the lines that count each image once."""
        return self.all_runs or self.lines


@dataclass(frozen=True)
class Study:
    """Results of a study, finished or not.

    curves: rows of metrics.jsonl by run. unfinished: run, state and epochs of each unfinished run.
    fold_settings: settings that determine the folds. superseded: number of runs with other data or
    settings than the last command. finished: names of the runs in the results. training: what these runs record
    about their trainings, from `training_record`.
    """

    name: str
    folder: str
    runs: tuple[str, ...]
    tables: tuple[RunTable, ...]
    curves: dict[str, list[Row]]
    unfinished: tuple[Row, ...]
    matrix: CrossDatasetResults
    fold_settings: tuple[int | str, ...] = ()
    superseded: int = 0
    finished: tuple[str, ...] = ()
    training: tuple[Row, ...] = ()


def read_study(folder: str, least: float | None = None) -> Study:
    """Read the results of a study, finished or not. least: as in `detect_in_tests`; None: without detection.

    Raises:
        InputError: the folder is not a study, no run is finished, or a file is damaged.

    """
    study = _read_study_json(folder)
    states = study.get("states", {})
    runs = tuple(name for name in study["runs"] if not is_superseded(states.get(name, {})))
    finished = [name for name in runs if storage.exists(storage.join(folder, name, "run.json"))]
    if not finished:
        raise InputError(
            f"{folder}: none of {counted(len(runs), 'run')} has a run.json, expected at least one finished run: "
            "run the same lungseg train command again to resume"
        )
    curves = {name: _read_curve(storage.join(folder, name, "metrics.jsonl")) for name in runs}
    return Study(
        name=study.get("study") or storage.name_of(folder),
        folder=folder,
        runs=runs,
        tables=_run_tables(folder, finished, least),
        curves=curves,
        unfinished=tuple(
            {"run": name, "state": _state_text(states.get(name, {})), "epochs": len(curves[name])}
            for name in runs
            if name not in finished
        ),
        matrix=summarise(read_rows(folder)),
        fold_settings=tuple(study.get("settings", {}).get(name, "") for name in ("folds", "split_seed", "folds_from")),
        superseded=len(study["runs"]) - len(runs),
        finished=tuple(finished),
        training=training_record(folder, finished),
    )


def read_rows(folder: str) -> list[Row]:
    """Read study.parquet: one row per image and run; none before the first run is finished.

    Rows of superseded runs (of an earlier command with other settings or data) are left out.

    Raises:
        InputError: a file is damaged.

    """
    path = storage.join(folder, "study.parquet")
    rows = storage.read_table(path, expected=STUDY_TABLE).to_pylist() if storage.exists(path) else []
    states = _read_study_json(folder).get("states", {})
    return [row for row in rows if not is_superseded(states.get(row["run"], {}))]


def _read_study_json(folder: str) -> Row:
    if not storage.exists(folder):
        raise InputError(
            f"{folder}: no such folder, expected a study: pass --study FOLDER (OUT/STUDY of lungseg train)"
        )
    path = storage.join(folder, "study.json")
    if not storage.exists(path):
        raise InputError(f"{folder}: no study.json, expected the folder of a study: pass OUT/STUDY of lungseg train")
    return storage.read_json(path, fields=_StudyFields)


def _state_text(state: Row) -> str:
    reason = state.get("reason")
    return f"failed: {reason}" if reason else "not finished"


def _run_tables(folder: str, runs: Sequence[str], least: float | None) -> tuple[RunTable, ...]:
    """Group finished runs by their shared settings."""
    groups: dict[str, list[tuple[Row, list[Row]]]] = defaultdict(list)
    for name in runs:
        summary = storage.read_json(storage.join(folder, name, "run.json"), fields=_RunFields)
        tested = storage.read_table(storage.join(folder, name, "tested.parquet"), expected=TEST_TABLE).to_pylist()
        groups[storage.digest([_shared_settings(summary)])].append((summary, tested))
    return tuple(_run_table(group, least) for group in groups.values())


def _shared_settings(summary: Row) -> Row:
    """Return the settings that all runs of a table share."""
    names = ("protocol", "train_on", "folds", "resolution", "aggregation", "input")
    reference = summary.get("reference", PREPARED_REFERENCE)
    settings = summary["settings"]
    # The settings, not the outcome: early stopping and a chosen threshold differ between folds.
    threshold = "chosen on a validation fold" if settings["choose_threshold"] else summary["threshold"]
    return {
        **{name: summary[name] for name in names},
        "reference": reference,
        "epochs": settings["epochs"],
        "threshold": threshold,
        "encoder": settings["model"]["encoder"],
    }


def _run_table(runs: Sequence[tuple[Row, list[Row]]], least: float | None) -> RunTable:
    lines: list[ResultLine] = []
    rows: list[Row] = []
    for summary, tested in runs:
        plan = {"fold": summary["fold"], "seed": summary.get("seed", 0)}
        rows += [{**row, **plan} for row in tested]
        lines += _result_lines(tested, {"run": summary["run"], **plan})
    counts = {f"{name}s": len({row[name] for row in rows}) for name in ("fold", "seed")}
    about = {
        **_shared_settings(runs[0][0]),
        "runs": len(runs),
        "trained_folds": counts["folds"],
        "seeds": counts["seeds"],
    }
    all_runs = _result_lines(_mean_per_image(rows), {}) if len(runs) > 1 else []
    detection = () if least is None else detect_in_tests(rows, least)
    return RunTable(about, tuple(lines), tuple(all_runs), tuple(detection))


def _result_lines(rows: Sequence[Row], about: Row) -> list[ResultLine]:
    """Summarise rows by class, role and dataset, held-out first."""
    classes = list(dict.fromkeys(row["class"] for row in rows))
    groups = group_by(rows, ("class", "role", "dataset"))

    def order(key: tuple[str, str, str]) -> tuple[int, bool, str, str]:
        name, role, dataset = key
        return classes.index(name), role != "held-out", role, dataset

    return [
        ResultLine(
            {**about, "class": name, "role": role, "dataset": dataset},
            compute_metrics(groups[name, role, dataset]),
            tuple(row["dice"] for row in groups[name, role, dataset]),
        )
        for name, role, dataset in sorted(groups, key=order)
    ]


def _mean_per_image(rows: Sequence[Row]) -> list[Row]:
    """Merge the rows of each image, class and role into their mean over the runs."""
    return [
        {
            **same[0],
            "rows": same,
            "patient": patient_key(same[0]),
            **{name: mean_defined(row[name] for row in same) for name in METRICS},
        }
        for same in group_by(rows, ("class", "role", "dataset", "image_id")).values()
    ]


def _read_curve(path: str) -> list[Row]:
    """Read metrics.jsonl, one row per epoch; a resumed run may have written an epoch twice: the last one counts."""
    if not storage.exists(path):
        return []
    advice = "delete it, or train again"
    rows = []
    for line in storage.read_bytes(path).splitlines():
        fields = check_fields(line, path, _EpochFields, advice)
        rows.append(parse_json(line, path) | fields.model_dump(exclude_unset=True))
    return [row for _, row in sorted({row["epoch"]: row for row in rows}.items())]
