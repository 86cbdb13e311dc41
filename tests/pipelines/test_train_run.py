"""One run as a Ray Train job: error messages, and the end of a run without resources. See also test_train.py."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import ControllerError

from lungseg import storage
from lungseg.cluster.connection import PLACEMENT_TIMEOUT_VARIABLE
from lungseg.cluster.resources import WorkerAllocation
from lungseg.config import LoaderSettings, ModelSettings, TrainSettings, WandbSettings
from lungseg.dataset import catalog
from lungseg.dataset.folds import RunPlan
from lungseg.errors import ResourceError, SettingsError, TaskResult
from lungseg.pipelines import train_progress, train_run
from lungseg.progress import SharedProgressLine
from lungseg.training import run_loop, run_state, tracking
from lungseg.training.run import Run

PLACED = WorkerAllocation(2, 1, 0)


def _run(prepared: Path, folder: Path, **changes: Any) -> Run:
    settings = TrainSettings(
        model=ModelSettings(encoder="tu-mobilenetv3_small_100", weights="none"),
        loader=LoaderSettings(batch_size=2),
        epochs=1,
        **changes,
    )
    plan = RunPlan("pooled", ("north", "south"), 0, 3, 0)
    return Run(settings, plan, tuple(catalog.find_datasets([str(prepared)])), folder.name, str(folder))


class FailedError(Exception):
    """Like the class of Ray Train: failures by rank, or of the controller."""

    def __init__(self, failures: dict[int, Exception] | None = None, controller: Exception | None = None) -> None:
        super().__init__("Training failed due to ...:\nthe last line")
        if failures is not None:
            self.worker_failures = failures
        if controller is not None:
            self.controller_failure = controller


class WorkerGroupStartupTimeoutError(Exception):
    """Like the class of Ray Train with this name."""


def test_cause_of_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(error: Exception) -> str:
        return str(train_run.failure_cause(error, PLACED))

    error_text = ValueError("Traceback...\nValueError: the story")
    assert message(FailedError({0: error_text, 1: RuntimeError("x")})) == "ValueError: the story"
    lost, wrong = RuntimeError("RuntimeError: connection closed"), SettingsError("the loss became nan: lower")
    failure = UserExceptionWithTraceback(wrong, "Traceback ...")
    assert train_run.failure_cause(FailedError({0: lost, 1: failure}), PLACED) is wrong
    assert message(FailedError(controller=ValueError("a\nb"))) == "b"
    assert message(FailedError()) == "the last line"
    monkeypatch.setenv(PLACEMENT_TIMEOUT_VARIABLE, "100")
    error = train_run.failure_cause(FailedError(controller=WorkerGroupStartupTimeoutError()), WorkerAllocation(2, 1, 1))
    assert isinstance(error, ResourceError)
    assert str(error).startswith("no place for 2 workers of 1 CPU and a GPU in 300 s: another job holds the resources")


def test_a_node_without_memory_is_named_in_words() -> None:
    killed = ray.exceptions.OutOfMemoryError("6 worker(s) were killed due to the node running low on memory.\nSee docs")
    for error in (FailedError({0: killed}), FailedError(controller=killed), killed):
        cause = train_run.failure_cause(error, PLACED)
        assert isinstance(cause, ResourceError)
        assert str(cause).startswith("a node ran out of memory, so Ray ended the workers on it: end other programs")


def test_settings_error_of_a_rank_is_raised_in_the_controller() -> None:
    wrong = SettingsError("the GPU has too little memory: pass --loader.batch-size 4")
    failures = {0: RuntimeError("connection closed"), 1: UserExceptionWithTraceback(wrong, "Traceback ...")}
    with pytest.raises(SettingsError) as raised:
        train_run.StopAtSettingsErrors().after_exception(None, failures)
    assert raised.value is wrong
    train_run.StopAtSettingsErrors().after_exception(None, {0: RuntimeError("connection closed")})
    assert train_run.failure_cause(FailedError(controller=wrong), PLACED) is wrong


def test_metrics_of_an_epoch_are_those_of_ray_trains_result(tmp_path: Path) -> None:
    """Without workers, Ray Train calls the loop in this process, with no cluster."""
    row = {"epoch": 2, "loss": 0.5, "held_out_dice": 0.9}
    trainer = TorchTrainer(
        lambda: train_progress.report_epoch(row, 0, "runs/first/pooled-fold0"),
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="run", storage_path=str(tmp_path)),
    )
    assert trainer.fit().metrics == row


def test_ray_train_does_not_restart_after_a_settings_error() -> None:
    """Its own classes, without a cluster: the error of a rank becomes one of the controller, which ends the run."""
    wrong = SettingsError("pass --loader.batch-size 4")
    callback = UserCallbackHandler([train_run.StopAtSettingsErrors()], None)
    status = WorkerStatus(running=False, error=UserExceptionWithTraceback(wrong, "Traceback ..."))
    with pytest.raises(SettingsError) as raised:
        callback.after_worker_group_poll_status(WorkerGroupPollStatus({0: status}))
    policy = DefaultFailurePolicy(ray.train.FailureConfig(max_failures=3))
    assert policy.make_decision(ControllerError(raised.value)) == FailureDecision.RAISE
    other = WorkerGroupPollStatus({0: WorkerStatus(running=False, error=RuntimeError("connection closed"))})
    callback.after_worker_group_poll_status(other)
    assert policy.make_decision(other.get_worker_group_error()) == FailureDecision.RETRY


@pytest.mark.slow
def test_settings_error_in_training_is_not_restarted(ray_cluster: None, tmp_path: Path) -> None:
    """Ray Train restarts a run after any other exception, and keeps the metrics that it reports."""

    def rank(config: dict[str, str]) -> None:
        with open(config["starts"], "a") as starts:  # pickled by value, without this module's imports
            starts.write("x")
        attempt = Path(config["starts"]).stat().st_size
        train_progress.report_epoch({"epoch": attempt}, 0, config["folder"])
        raise ValueError("may pass") if attempt == 1 else SettingsError("pass --loader.batch-size 4")

    starts = tmp_path / "starts"
    trainer = TorchTrainer(
        rank,
        train_loop_config={"starts": str(starts), "folder": str(tmp_path / "run")},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(tmp_path / "ray"),
            callbacks=[train_run.StopAtSettingsErrors()],  # type: ignore[list-item]
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    with pytest.raises(ray.train.TrainingFailedError) as raised:
        trainer.fit()
    error = train_run.failure_cause(raised.value, PLACED)
    assert (type(error), str(error)) == (SettingsError, "pass --loader.batch-size 4")
    assert starts.read_text() == "xx"
    assert ray.train.Result.from_path(str(tmp_path / "ray" / "run")).metrics == {"epoch": 2}


@pytest.mark.slow
def test_run_without_free_cpus_fails(
    ray_cluster: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self) -> bool:
            return True

    monkeypatch.setenv(PLACEMENT_TIMEOUT_VARIABLE, "1")
    holder = Holder.remote()  # type: ignore[attr-defined]
    ray.get(holder.ready.remote())
    try:
        with pytest.raises(
            ResourceError, match=r"^no place for 2 workers of 1 CPU in 3 s: another job holds the resources"
        ):
            train_run.train(_run(prepared, tmp_path / "run"), PLACED, SharedProgressLine(logging.getLogger("test")))
    finally:
        ray.kill(holder)


class Mirror:
    """Records what is sent to W&B."""

    sent: list[Any]

    def __init__(self, *_: Any) -> None:
        Mirror.sent = []

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def log_images(self, images: list[tracking.TrackedImage]) -> None:
        self.sent += images

    def log_artifact(self, name: str, folder: str) -> None:
        self.sent.append((name, folder))


def test_wandb_receives_images_and_checkpoint_if_enabled(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = WandbSettings(images=2, artifact=True)
    training = run_state.start(_run(prepared, tmp_path / "run", wandb=settings), torch.device("cpu"))
    run_loop.finish(training, lambda _: None)
    monkeypatch.setattr(tracking, "WandbMirror", Mirror)
    train_run.log_results(training, torch.device("cpu"))
    *images, (name, folder) = Mirror.sent
    assert name == "run"
    assert Path(folder).parent == tmp_path / "run" / "checkpoint"
    held_out = {row["image_id"] for row in storage.read_table(str(tmp_path / "run" / "tested.parquet")).to_pylist()}
    assert len(images) == 2
    for tracked in images:
        assert tracked.name.split("/")[1] in held_out
        assert (1, *tracked.image.shape) == tracked.predicted.shape == tracked.references.shape == (1, 64, 64)
        assert set(np.unique(tracked.predicted)) <= {0, 1}
    # An error at this point is only logged: the run is finished and must not be repeated.
    monkeypatch.setattr(train_run, "_tracked_images", lambda *_: 1 / 0)
    train_run.log_results(training, torch.device("cpu"))
    assert "run: W&B gets no results (division by zero)" in caplog.text
    assert "ZeroDivisionError" in caplog.text  # a bug keeps its traceback


def test_resumed_run_logs_that_it_continues(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    run = _run(prepared, tmp_path / "run", save_steps=1)
    board = SimpleNamespace(post=SimpleNamespace(remote=lambda progress: notes.append(progress.note)))
    monkeypatch.setattr(train_run, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(train_run.logs, "configure", lambda **_: None)
    monkeypatch.setattr(train_run, "_require_same_data", lambda _: None)
    reported: list[Any] = []
    monkeypatch.setattr(train_progress, "report_epoch", lambda metrics, *_: reported.append(metrics))
    with monkeypatch.context() as patch:
        patch.setattr(run_loop, "measure_samples", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_run.train_rank({"run": run, "board": board})
    (saved,) = (tmp_path / "run" / "checkpoint").iterdir()
    assert saved.name.startswith("epoch-0000-step-")
    assert "resuming from its checkpoint" not in notes
    assert train_run.train_rank({"run": run, "board": board}) == TaskResult()
    assert next(note for note in notes if note) == "resuming from its checkpoint"
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert reported == [json.loads(line)]


def test_user_error_is_returned_so_that_ray_does_not_retry(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(prepared, tmp_path / "run")
    model = ModelSettings(encoder="resnet18", weights=str(tmp_path / "missing.pth"))
    run = replace(run, settings=run.settings.model_copy(update={"model": model}))
    monkeypatch.setattr(train_run, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(train_run.logs, "configure", lambda **_: None)
    monkeypatch.setattr(train_run, "_require_same_data", lambda _: None)
    error = train_run.train_rank({"run": run, "board": None}).error
    assert re.search(r"missing\.pth: cannot be read", str(error))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_wandb_receives_nothing_by_default(monkeypatch: pytest.MonkeyPatch, prepared: Path, tmp_path: Path) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(tracking, "WandbMirror", lambda *arguments: opened.append(arguments))
    training = run_state.start(_run(prepared, tmp_path / "run"), torch.device("cpu"))
    train_run.log_results(training, torch.device("cpu"))
    assert not opened
