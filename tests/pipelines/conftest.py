"""Training without Ray, for tests of how a study manages its runs."""

import pytest
import torch

from lungseg.cluster.resources import WorkerAllocation
from lungseg.pipelines import train, train_run
from lungseg.training import run_loop, run_state
from lungseg.training.run import Run


def train_here(run: Run, *_: object) -> None:
    """Train a run in this process."""
    run_loop.finish(run_state.start(run, torch.device("cpu")), lambda _: None)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train runs in this process, one after another."""
    monkeypatch.setattr(train_run, "train", train_here)
    monkeypatch.setattr(train, "settings_for_cluster", lambda settings, _: settings)
    monkeypatch.setattr(train, "allocate", lambda *_: (1, WorkerAllocation(1, 1, 0)))
    monkeypatch.setenv("WANDB_MODE", "disabled")
