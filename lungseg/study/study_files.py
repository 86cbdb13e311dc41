"""study.json and study.parquet: which runs a study has, what became of each, and what they come to so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lungseg import storage
from lungseg.config import TrainSettings
from lungseg.dataset.folds import RunPlan
from lungseg.schema import STUDY_ROWS, table
from lungseg.study import cross_dataset

Row = dict[str, Any]


@dataclass
class StudyRecord:
    """Writer of study.json and study.parquet for one training command.

    plans: this command's runs by name. matching_runs: names of all runs that these settings and data allow. Only they
    count in the results; finished runs with other settings or data stay listed. failures: reason by run name.
    """

    folder: str
    settings: TrainSettings
    plans: Mapping[str, RunPlan]
    matching_runs: frozenset[str]
    failures: dict[str, str] = field(default_factory=dict)

    def is_finished(self, name: str) -> bool:
        """Whether a run was trained and tested."""
        return storage.exists(storage.join(self.folder, name, "run.json"))

    def read_run_summary(self, name: str) -> Row:
        """Read what a finished run says of itself."""
        return storage.read_json(storage.join(self.folder, name, "run.json"))

    def write_states(self) -> dict[str, Row]:
        """Write which runs there are and what became of each; return the states.

        The results stay as they were while they are of these settings and data, and are taken back where they are not.

        Raises:
            InputError: the folder cannot be written.

        """
        before = self._before()
        states = before.get("states", {})
        earlier = [name for name in before.get("runs", []) if name not in self.plans]
        kept = [name for name in earlier if self.is_finished(name) or (name in self.matching_runs and name in states)]
        runs = {name: self._state(name, states) for name in [*kept, *self.plans]}
        counted = [name for name, state in states.items() if state["in_results"]]
        self._write(runs, before.get("results", {}) if self.matching_runs.issuperset(counted) else {})
        return runs

    def write(self) -> cross_dataset.CrossDatasetResults:
        """Write both files in full, study.parquet first; return what the finished runs come to.

        Raises:
            InputError: a file of a finished run is damaged, or the folder cannot be written.

        """
        runs = self.write_states()
        rows: list[Row] = []
        for name, run in runs.items():
            if run["in_results"]:
                tested = storage.read_table(storage.join(self.folder, name, "tested.parquet")).to_pylist()
                rows += cross_dataset.study_rows(tested, run["protocol"], run["train_on"], run["fold"])
        found = cross_dataset.summarise(rows)
        storage.write_table(storage.join(self.folder, "study.parquet"), table(rows, STUDY_ROWS))
        self._write(runs, found.as_json())
        return found

    def _before(self) -> Row:
        path = storage.join(self.folder, "study.json")
        return storage.read_json(path) if storage.exists(path) else {}

    def _write(self, runs: dict[str, Row], results: Row) -> None:
        content = {
            "study": self.settings.study,
            "runs": list(runs),
            "states": runs,
            "results": results,
            "settings": self.settings.model_dump(),
        }
        storage.write_json(storage.join(self.folder, "study.json"), content)

    def _state(self, name: str, before: Mapping[str, Row]) -> Row:
        """Say what a run is and what became of it; one that this command does not train is as it was before."""
        if self.is_finished(name):
            summary = self.read_run_summary(name)
            plan = {key: summary[key] for key in ("protocol", "train_on", "fold")}
            return {**plan, "state": "finished", "in_results": name in self.matching_runs}
        if name not in self.plans:
            return before[name]
        one = self.plans[name]
        state = (
            {"state": "failed", "reason": self.failures[name]} if name in self.failures else {"state": "not finished"}
        )
        return {
            "protocol": one.protocol,
            "train_on": list(one.train_on),
            "fold": one.fold,
            **state,
            "in_results": False,
        }
