"""The definition of one run: its settings, split, data and name."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import TrainSettings
from lungseg.config.options import flatten
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.folds import Link, RunPlan
from lungseg.model import checkpoint, sources
from lungseg.model.custom_code import source_digests
from lungseg.schema import SCHEMA
from lungseg.training.method_digest import method_digest


@dataclass(frozen=True)
class Run:
    """One run, as every rank receives it.

    data: folders of the prepared datasets. folder: where the run writes. linked: pairs of images, as
    `dataset/image_id`, that the audit reported as duplicates or as images of one patient. index: path of the training
    index of these data and links, which the driver wrote; without one, each rank makes its own. origin: the command
    that started it and the git commit of its code, for provenance.json.
    """

    settings: TrainSettings
    plan: RunPlan
    data: tuple[str, ...]
    name: str
    folder: str
    linked: tuple[Link, ...] = ()
    index: str = ""
    origin: Row = field(default_factory=dict, compare=False)

    @property
    def random_seed(self) -> int:
        """Seed of the run's random numbers, derived from the seed of the training and the fold.

        With the same random numbers in every fold, the trainings of one seed would share new weights and be better or
        worse together: not the independent trainings that the statistics count. Fold 0 uses the seed itself.
        """
        if not self.plan.fold:
            return self.settings.seed
        return int(np.random.SeedSequence((self.settings.seed, self.plan.fold)).generate_state(1)[0])


@dataclass(frozen=True)
class Progress:
    """Position and speed of a run, to be displayed.

    epoch, step: counted from 1. loss: mean over the last batch of this rank. images_per_second: over all ranks.
    device_wait_share: share of this rank's time in which its device waited for data. Both are measured since the
    start of the epoch or the last checkpoint in it. peak_device_mib: most memory of a GPU in this epoch; 0 on a CPU.
    metrics: after an epoch, its line of metrics.jsonl.
    """

    epoch: int
    step: int
    total_steps: int
    loss: float
    note: str = ""
    images_per_second: float = 0.0
    device_wait_share: float = 0.0
    peak_device_mib: int = 0
    metrics: Row | None = None


ShowProgress = Callable[[Progress], None]

# Settings that do not change a run's result; changing them resumes the same run.
_SELECTION = {"data", "out", "study", "protocols", "only_folds", "train_on", "phantoms", "seeds"}
_EXECUTION = {
    "strict",
    "wandb",
    "max_failures",
    "runs_at_once",
    "min_workers",
    "rerun",
    "test_every",
    "save_minutes",
    "profile",
}
_LOADER = {"processes", "cache_mib", "disk_mib"}


def name_run(settings: TrainSettings, plan: RunPlan, data: Sequence[PreparedDataset]) -> str:
    """Return the plan's name and a digest of everything that affects the result, so that nothing else resumes it.

    That is: the settings that differ from their defaults (so that a new setting renames no earlier run), the data, and
    the code of the method.

    Raises:
        InputError: a file of weights or folds cannot be read.
        SettingsError: custom code cannot be imported.

    """
    hashed = result_settings(settings)
    if settings.model.weights not in ("imagenet", "none"):
        hashed["model"]["weights"] = _digest_file(settings.model.weights)
    if settings.folds_from:
        hashed["folds_from"] = _digest_file(settings.folds_from)
    if settings.teacher:
        hashed["teacher"] = checkpoint.ensemble_digest(checkpoint.find_all(sources.resolve(settings.teacher)))
    if custom_code := source_digests(settings):
        hashed["custom_code"] = custom_code
    inputs = [SCHEMA, method_digest(settings), plan.protocol, plan.train_on, plan.fold, hashed]
    return f"{plan.name}-{storage.digest([*inputs, [dataset.digest for dataset in data]])[:8]}"


def result_settings(settings: TrainSettings) -> Row:
    """Return the settings that affect the result of a run and differ from their defaults."""
    excluded: Any = {**dict.fromkeys(_SELECTION | _EXECUTION, True), "loader": _LOADER}
    excluded["compute"] = {"timeout_s", "threads"} if settings.device == "gpu" else {"timeout_s"}
    if settings.loader.batch_size == implied_batch_size(settings):
        excluded["loader"] = {*_LOADER, "batch_size"}
    changed = settings.model_dump(exclude=excluded, exclude_defaults=True)
    return {name: value for name, value in changed.items() if value != {}}


def recorded_result_settings(recorded: Row) -> Row:
    """Return the settings in a run.json that affect a result, by dotted name; the seed is not among them.

    recorded: with every default; maybe written by another version, which had other settings.
    """
    ignored = {*_SELECTION, *_EXECUTION, "seed", "compute.timeout_s", *(f"loader.{name}" for name in _LOADER)}
    if recorded.get("device") == "gpu":
        ignored.add("compute.threads")
    settings = flatten({name: value for name, value in recorded.items() if name not in ignored})
    return {name: value for name, value in settings.items() if name not in ignored}


def implied_batch_size(settings: TrainSettings) -> int:
    """Return the images per rank and batch that --loader.batch-size auto stands for."""
    loader = settings.loader.model_copy(update={"batch_size": "auto"})
    return settings.model_copy(update={"loader": loader}).rank_batch_size


@functools.cache
def _digest_file(path: str) -> str:
    """Return the SHA-256 of a file of weights or folds; read once per process."""
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()
