"""What a run is: who is trained on whom with which settings, under a name that tells it from all others."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lungseg import storage
from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.folds import Link, RunPlan
from lungseg.schema import SCHEMA


@dataclass(frozen=True)
class Run:
    """One run, as every rank receives it: settings, who trains on whom, the data sets' folders, and its own folder.

    linked: images, as `dataset/image_id`, that the audit found to be one picture or of one patient.
    """

    settings: TrainSettings
    plan: RunPlan
    data: tuple[str, ...]
    name: str
    folder: str
    linked: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Progress:
    """Position and speed of a run, to be displayed.

    epoch, step: counted from 1. loss: mean over the last batch of this rank. images_per_second: over all ranks.
    device_wait_share: share of this rank's time in which its device waited for data. Both are measured since the
    start of the epoch or the last checkpoint in it.
    """

    epoch: int
    step: int
    total_steps: int
    loss: float
    note: str = ""
    images_per_second: float = 0.0
    device_wait_share: float = 0.0


ShowProgress = Callable[[Progress], None]


def name_run(settings: TrainSettings, plan: RunPlan, data: list[PreparedDataset]) -> str:
    """Name a run after its plan and a digest of all that shapes its result, so that no other setting resumes it.

    Raises:
        InputError: a file of weights cannot be read.

    """
    elsewhere = {"data", "out", "study", "protocols", "only_folds", "train_on", "phantoms"}
    how, reading = {"wandb", "max_failures", "runs_at_once", "min_workers"}, {"threads", "cache_mib", "disk_mib"}
    shaping: dict[str, Any] = settings.model_dump(exclude={**dict.fromkeys(elsewhere | how, True), "loader": reading})
    if settings.model.weights not in ("imagenet", "none"):
        shaping["model"]["weights"] = _digest_file(settings.model.weights)
    made_of = [SCHEMA, plan.protocol, plan.train_on, plan.fold, shaping]
    return f"{plan.name}-{storage.digest([*made_of, [part.digest for part in data]])[:8]}"


@functools.cache
def _digest_file(path: str) -> str:
    """SHA-256 of a file of weights, which may be replaced under its name; read once a process."""
    return hashlib.sha256(storage.read_bytes(path)).hexdigest()
