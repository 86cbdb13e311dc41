"""study.json and study.parquet: the runs of a study, their states, and the results so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import TrainSettings
from lungseg.dataset.catalog import read_subgroups
from lungseg.dataset.folds import RunPlan
from lungseg.model.checkpoint_fields import StudyRuns
from lungseg.result_columns import STUDY_ROWS
from lungseg.schema import table
from lungseg.storage.json_files import JsonFields, Whole
from lungseg.storage.table_formats import TEST_TABLE
from lungseg.study import cross_dataset
from lungseg.study.tested_images import study_rows


class _RunFields(JsonFields):
    protocol: str
    train_on: list[str]
    fold: Whole
    seed: Whole = 0


class _StudyFields(StudyRuns):
    results: dict[str, Any] = Field(default_factory=dict)


def _tested_rows(path: str) -> list[Row]:
    rows: list[Row] = storage.read_table(path, expected=TEST_TABLE).to_pylist()
    return rows


def earlier_seeds(folder: str) -> set[int]:
    """Return the seeds of the runs that study.json lists; none before the first command of a study."""
    path = storage.join(folder, "study.json")
    states = storage.read_json(path, fields=StudyRuns).get("states", {}) if storage.exists(path) else {}
    return {state.get("seed", 0) for state in states.values()}


@dataclass
class StudyRecord:
    """Writer of study.json and study.parquet for one training command.

    plans: this command's runs by name. matching_runs: names of all runs that these settings and data allow. Only they
    count in the results; finished runs with other settings or data stay listed. data: folders of the prepared datasets.
    failures: reason by run name.
    """

    folder: str
    settings: TrainSettings
    plans: Mapping[str, RunPlan]
    matching_runs: frozenset[str]
    data: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    def is_finished(self, name: str) -> bool:
        """Return whether a run was trained and tested."""
        return storage.exists(storage.join(self.folder, name, "run.json"))

    def read_run_summary(self, name: str) -> Row:
        """Read run.json of a finished run."""
        return storage.read_json(storage.join(self.folder, name, "run.json"), fields=_RunFields)

    def kept_aside(self) -> list[str]:
        """Return the finished runs of earlier commands with other settings, data or code."""
        runs = self._read_earlier().get("runs", [])
        return [name for name in runs if name not in self.matching_runs and self.is_finished(name)]

    def write_states(self, is_end: bool = False) -> dict[str, Row]:
        """Write the runs and their states; return the states.

        Results of earlier runs with other settings, data or code stay until the command ends (is_end) with a finished
        run of its own; they are never mixed.

        Raises:
            InputError: the folder cannot be written.

        """
        earlier_study = self._read_earlier()
        states = earlier_study.get("states", {})
        earlier = [name for name in earlier_study.get("runs", []) if name not in self.plans]
        kept = [name for name in earlier if self.is_finished(name) or (name in self.matching_runs and name in states)]
        names = [*kept, *self.plans]
        earlier_results = [name for name in kept if states.get(name, {}).get("in_results", False)]
        is_new = is_end and any(self.is_finished(name) for name in names if name in self.matching_runs)
        keep_results = not self.matching_runs.issuperset(earlier_results) and not is_new
        runs = {name: self._state(name, states, keep_results) for name in names}
        self._write(runs, earlier_study.get("results", {}))
        return runs

    def write(self) -> cross_dataset.CrossDatasetResults:
        """Write both files in full, study.parquet first; return the results of the finished runs.

        Raises:
            InputError: a file of a finished run is damaged, or the folder cannot be written.

        """
        runs, subgroups = self.write_states(is_end=True), read_subgroups(self.data)
        rows: list[Row] = []
        for name, run in runs.items():
            if run["in_results"]:
                tested = _tested_rows(storage.join(self.folder, name, "tested.parquet"))
                plan = (run["protocol"], run["train_on"], run["fold"], run["seed"])
                rows += study_rows(tested, *plan, subgroups)
        results = cross_dataset.summarise(rows)
        storage.write_table(storage.join(self.folder, "study.parquet"), table(rows, STUDY_ROWS))
        self._write(runs, results.as_json())
        return results

    def _read_earlier(self) -> Row:
        path = storage.join(self.folder, "study.json")
        return storage.read_json(path, fields=_StudyFields) if storage.exists(path) else {}

    def _write(self, runs: dict[str, Row], results: Row) -> None:
        content = {
            "study": self.settings.study,
            "runs": list(runs),
            "states": runs,
            "results": results,
            "settings": self.settings.model_dump(),
        }
        storage.write_json(storage.join(self.folder, "study.json"), content)

    def _state(self, name: str, earlier_states: Mapping[str, Row], keep_results: bool) -> Row:
        """Return the plan and state of a run; a run that this command does not train keeps its earlier state.

        keep_results: the results stay those of earlier runs with other settings, data or code.
        """
        if self.is_finished(name):
            summary = self.read_run_summary(name)
            plan = {key: summary[key] for key in ("protocol", "train_on", "fold")}
            was_in_results = earlier_states.get(name, {}).get("in_results", False)
            in_results = was_in_results if keep_results else name in self.matching_runs
            return {**plan, "seed": summary.get("seed", 0), "state": "finished", "in_results": in_results}
        if name not in self.plans:
            return earlier_states[name]
        run_plan = self.plans[name]
        state = (
            {"state": "failed", "reason": self.failures[name]} if name in self.failures else {"state": "not finished"}
        )
        return {
            "protocol": run_plan.protocol,
            "train_on": list(run_plan.train_on),
            "fold": run_plan.fold,
            "seed": run_plan.seed,
            **state,
            "in_results": False,
        }
