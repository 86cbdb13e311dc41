"""Find what differs between two studies besides their results: settings, data, code and library versions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from lungseg import provenance, storage
from lungseg.arrays import Row
from lungseg.config import TrainSettings
from lungseg.config.shared import format_value
from lungseg.storage.json_files import JsonFields
from lungseg.training.run import implied_batch_size, recorded_result_settings

Kind = Literal["setting", "data", "code", "library"]

_NOT_RECORDED = "not recorded"
_CODE_DIGEST: tuple[Kind, str] = ("code", "code digest")
_COMMIT: tuple[Kind, str] = ("code", "git commit")
_BATCH_SIZE = "--loader.batch-size"


@dataclass(frozen=True)
class StudyDifference:
    """One thing that differs: a setting as on the command line, a dataset, the code, or a library."""

    other_study: str
    kind: Kind
    name: str
    this: str
    other: str

    def as_json(self) -> Row:
        """Return the fields."""
        return asdict(self)


def find_differences(folder: str, runs: Sequence[str], other: str, other_runs: Sequence[str]) -> list[StudyDifference]:
    """Compare the finished runs of two studies; settings come first, then data, code and libraries.

    Where the runs of a study differ among themselves, each value is listed. Commits count only where the code differs.
    """
    this_facts, other_facts = recorded_facts(folder, runs), recorded_facts(other, other_runs)
    digest = this_facts.get(_CODE_DIGEST)
    if digest and digest == other_facts.get(_CODE_DIGEST):  # then the commits differ in other files only
        this_facts.pop(_COMMIT, None)
        other_facts.pop(_COMMIT, None)
    names = dict.fromkeys([*this_facts, *other_facts])
    pairs = ((name, this_facts.get(name, _NOT_RECORDED), other_facts.get(name, _NOT_RECORDED)) for name in names)
    study = storage.name_of(other)
    differences = [
        StudyDifference(study, kind, name, this, value) for (kind, name), this, value in pairs if this != value
    ]
    order: tuple[Kind, ...] = ("setting", "data", "code", "library")
    return sorted(differences, key=lambda difference: order.index(difference.kind))


def warn_of_several(differences: Sequence[StudyDifference]) -> list[str]:
    """Return a sentence for each other study that differs in more than one thing: results do not tell which matters.

    Other code is one thing, whatever its digest and commit say.
    """
    by_study: dict[str, dict[str, None]] = {}
    for difference in differences:
        name = "code" if difference.kind == "code" else difference.name
        by_study.setdefault(difference.other_study, {})[name] = None
    return [
        f"{len(names)} things differ from {study} ({', '.join(names)}): the comparison cannot tell which one matters."
        for study, names in by_study.items()
        if len(names) > 1
    ]


class RunSettings(JsonFields):
    """Settings, data and digests of custom code of a run in run.json."""

    settings: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
    custom_code: dict[str, str] = Field(default_factory=dict)


def describe_changes(before: Row, now: TrainSettings) -> str:
    """List the settings that differ and affect the result, such as `--epochs 50, now 80`; "" if none does.

    before: of a run.json; a setting that its version did not have is at its default.
    """
    new, defaults = _training_settings(now.model_dump()), _training_settings(TrainSettings().model_dump())
    old = {name: value for name, value in defaults.items() if name in new} | _training_settings(before)
    for settings in (old, new):
        if settings[_BATCH_SIZE] == "auto":
            settings[_BATCH_SIZE] = str(implied_batch_size(now))
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {old.get(name, '(none)')}, now {new.get(name, '(none)')}" for name in changed)


def recorded_facts(folder: str, runs: Sequence[str]) -> dict[tuple[Kind, str], str]:
    """Return settings, data, code and libraries that the runs recorded, by kind and name.

    Where the runs differ among themselves, each value is listed.

    Raises:
        InputError: a file of a run is damaged.

    """
    values: dict[tuple[Kind, str], dict[str, None]] = {}
    for run in runs:
        path = storage.join(folder, run)
        for key, value in _run_facts(
            storage.read_json(storage.join(path, "run.json"), fields=RunSettings), provenance.read(path)
        ).items():
            values.setdefault(key, {})[value] = None
    return {key: ", ".join(sorted(texts)) for key, texts in values.items()}


def _run_facts(summary: Row, origin: Row) -> dict[tuple[Kind, str], str]:
    start = origin.get("starts", [{}])[-1]
    git = start.get("git") or {}
    commit = f"{git.get('commit', '')[:12]}{' with changes' if git.get('uncommitted_changes') else ''}" if git else ""
    settings, data, versions = (
        _training_settings(summary["settings"]),
        summary.get("data", {}),
        start.get("versions", {}),
    )
    code = {"code digest": start.get("code"), "git commit": commit}
    sources = {path: f"{path} with source {digest}" for path, digest in summary.get("custom_code", {}).items()}
    return {
        **{("setting", name): sources.get(value, value) for name, value in settings.items()},
        **{("data", name): digest for name, digest in data.items()},
        **{("code", name): value for name, value in code.items() if value},
        **{("library", name): version for name, version in versions.items()},
    }


def _training_settings(settings: Row) -> dict[str, str]:
    """Return the settings of a training that affect its result, named and written as on the command line."""
    training = recorded_result_settings(settings)
    return {f"--{name.replace('_', '-')}": format_value(value) for name, value in training.items()}
