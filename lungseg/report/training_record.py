"""What the runs of a study record about their trainings, for the methods section of a paper."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import TrainSettings
from lungseg.storage.json_files import JsonFields, Whole
from lungseg.study.study_differences import recorded_facts

_PLAN = {
    "protocol": "protocol",
    "train_on": "trained on",
    "folds": "number of folds",
    "fold": "held-out folds",
    "seed": "seeds of the trainings",
    "trained_images": "training images of a run",
    "architecture": "architecture",
    "optimizer": "optimizer",
    "input": "input size",
}


class _PlanFields(JsonFields):
    protocol: str
    train_on: list[str]
    folds: Whole
    fold: Whole
    seed: Whole = 0
    trained_images: Whole
    architecture: str = ""
    optimizer: str = ""
    input: str
    settings: dict[str, Any]


def training_record(folder: str, runs: Sequence[str]) -> tuple[Row, ...]:
    """Return rows of `kind`, `name` and `value`; where the runs differ, the value lists all of theirs.

    Raises:
        InputError: a file of a run is damaged.

    """
    summaries = [storage.read_json(storage.join(folder, run, "run.json"), fields=_PlanFields) for run in runs]
    plan = {title: _values(summary.get(key) for summary in summaries) for key, title in _PLAN.items()}
    plan["images per step"] = _values(_images_per_step(summary["settings"]) for summary in summaries)
    facts = {("plan", title): value for title, value in plan.items() if value} | recorded_facts(folder, runs)
    return tuple({"kind": kind, "name": name, "value": value} for (kind, name), value in facts.items())


def _images_per_step(settings: Row) -> int | None:
    """Return the images of all ranks per step; None for settings that this version does not know."""
    try:
        return TrainSettings.model_validate(settings).step_size
    except ValidationError:
        return None


def _values(values: Iterable[Any]) -> str:
    distinct = {" + ".join(value) if isinstance(value, list) else value for value in values if value is not None}
    return ", ".join(map(str, sorted(distinct)))
