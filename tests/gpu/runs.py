"""Runs on a device, in this process."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lungseg import storage
from lungseg.config import LoaderSettings, ModelSettings, OptimSettings, TrainSettings, WandbSettings
from lungseg.dataset import catalog
from lungseg.dataset.folds import RunPlan
from lungseg.training import run_loop, run_state
from lungseg.training.run import Progress, Run

DEVICE = torch.device(os.environ.get("LUNGSEG_TEST_DEVICE", "cuda"), 0)
MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none", dropout=0.0)
SETTINGS = TrainSettings(
    folds=2,
    epochs=2,
    model=MODEL,
    optim=OptimSettings(lr=5e-3),
    loader=LoaderSettings(batch_size=2),
    wandb=WandbSettings(mode="disabled"),
)
PLAN = RunPlan("pooled", ("north", "south"), fold=0, folds=2, split_seed=0)
Show = Callable[[Progress], None]


def train(prepared: Path, folder: Path, show: Show = lambda _: None, **changes: Any) -> dict[str, Any]:
    """Train and test a run on the device, or resume it; return the content of run.json."""
    folders = tuple(catalog.find_datasets([str(prepared)]))
    run = Run(SETTINGS.model_copy(update=changes), PLAN, folders, folder.name, str(folder))
    return run_loop.finish(run_state.start(run, DEVICE), show)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    lines = storage.read_bytes(str(folder / "metrics.jsonl")).splitlines()
    return [storage.json_files.parse_json(line, "metrics.jsonl") for line in lines]
