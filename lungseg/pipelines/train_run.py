"""One run of a study as a Ray Train job."""

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from lungseg import logs, storage
from lungseg.cluster.connection import PLACEMENT_TIMEOUT_VARIABLE
from lungseg.cluster.resources import WorkerAllocation, environment_without_gpus
from lungseg.dataset.training_index import has_same_data
from lungseg.errors import InputError, LungsegError, ResourceError, SettingsError, TaskResult, unwrapped
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory
from lungseg.model.precision import to_network_input
from lungseg.pipelines import train_progress
from lungseg.plurals import counted
from lungseg.progress import SharedProgressLine
from lungseg.training import run_loop, run_state, tracking
from lungseg.training.distributed import gather, rank_and_world_size
from lungseg.training.run import Progress, Run, name_run
from lungseg.training.study_data import open_run_index

logger = logging.getLogger(__name__)

_PLACEMENT_ATTEMPTS = 3  # each waits PLACEMENT_TIMEOUT_VARIABLE; Ray Train alone would retry forever
_OUT_OF_MEMORY = "running low on memory"  # in the text of Ray's OutOfMemoryError


class StopAtSettingsErrors(ray.train.UserCallback):
    """Ends a run when a rank raises a SettingsError, which Ray Train would repeat with every restart."""

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """Raise the error in Ray Train's controller, which does not restart after an error of its own.

        Raises:
            SettingsError: that of a rank.

        """
        for error in map(unwrapped, worker_exceptions.values()):
            if isinstance(error, SettingsError):
                raise error


def train(run: Run, allocation: WorkerAllocation, line: SharedProgressLine) -> None:
    """Train and test a run, resuming an earlier start; several threads may call it at once.

    Raises:
        LungsegError: the run could not be placed, its settings or data cannot be used, or workers failed too often.

    """
    device = "GPU" if allocation.gpus else "CPU"
    each = " each" if allocation.workers > 1 else ""
    line.log(run.name, f"{counted(allocation.workers, 'worker')}, {counted(allocation.cpus, 'CPU')}{each}, on {device}")
    board, ended = train_progress.start_board(), threading.Event()
    watcher = threading.Thread(target=train_progress.watch, args=(board, run, ended, line), daemon=True)
    watcher.start()
    try:
        result = _trainer(run, allocation, board).fit()
    except ray.train.TrainingFailedError as error:
        raise failure_cause(error, allocation) from error
    finally:
        ended.set()
        watcher.join()
        line.remove(run.name)
        if not line.closed.is_set():
            ray.kill(board)
    (getattr(result, "return_value", None) or TaskResult()).unwrap()


def _trainer(run: Run, allocation: WorkerAllocation, board: Any) -> TorchTrainer:
    min_workers, planned = run.settings.min_workers, run.settings.planned_world_size
    loader = run.settings.loader.for_rank(allocation.cpus, bool(allocation.gpus))
    run = replace(run, settings=run.settings.model_copy(update={"loader": loader}))
    # With fewer workers, each takes over batches of the missing ones until a node replaces them.
    workers: Any = (min_workers, planned) if 0 < min_workers < planned else allocation.workers
    storage_path = storage.join(storage.parent_of(run.folder), ".ray-train")
    # Ray refuses its record of an earlier start where a kill left half of it, or another version of Ray wrote it.
    storage.delete(storage.join(storage_path, run.name))
    return TorchTrainer(
        train_rank,  # type: ignore[arg-type]  # its value is Result.return_value
        train_loop_config={"run": run, "board": board},
        torch_config=TorchConfig(timeout_s=run.settings.compute.timeout_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(allocation.gpus),
            resources_per_worker={"CPU": allocation.cpus, **({"GPU": 1} if allocation.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=storage_path,
            worker_runtime_env={} if allocation.gpus else environment_without_gpus(),
            callbacks=[StopAtSettingsErrors()],  # type: ignore[list-item]  # Ray types its old class
            failure_config=ray.train.FailureConfig(
                max_failures=run.settings.max_failures,
                controller_failure_limit=_PLACEMENT_ATTEMPTS - 1,  # type: ignore[call-arg]  # Ray types its old class
            ),
        ),
    )


def train_rank(config: dict[str, Any]) -> TaskResult:
    """Train one rank; return an error at the start, because Ray Train retries a run after an exception."""
    run, board, rank = config["run"], config["board"], rank_and_world_size()[0]
    logs.configure(prefix=f"{run.settings.study} {run.name} rank {rank}: ")
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects through the current device
    else:
        keep_freed_memory()
    started = TaskResult.of(_start, run, device)
    errors = [error for error in gather(started.error) if error is not None]
    if errors:
        return TaskResult(error=errors[0])
    training: run_state.TrainingState = started.value
    if len(set(gather((training.epoch, training.step, *training.learner.compute_mode.values())))) > 1:
        # Raised, so that Ray retries: a network file system may show a new checkpoint late.
        raise LungsegError(f"{run.name}: ranks read different checkpoints, or differ in device or precision")
    show = train_progress.make_reporter(run, rank_and_world_size(), board)
    if rank == 0 and (training.epoch or training.step):
        show(Progress(training.epoch, 0, 0, 0.0, "resuming from its checkpoint"))
    run_loop.finish(training, show)
    if rank == 0:
        log_results(training, device)
    return TaskResult()


def _start(run: Run, device: torch.device) -> run_state.TrainingState:
    if rank_and_world_size()[0] == 0:
        _require_same_data(run)
    return run_state.start(run, device)


def _require_same_data(run: Run) -> None:
    """Refuse data or custom code that changed after the study named its runs by their digests."""
    index = open_run_index(run)
    if not has_same_data(index) or name_run(run.settings, run.plan, index.datasets) != run.name:
        raise InputError(
            f"{run.name}: its data, or the code that trains it, changed since the study began: start the same command "
            "again"
        )


def log_results(training: run_state.TrainingState, device: torch.device) -> None:
    """Log the checkpoint and some images to W&B, if the settings enable it."""
    run, wandb = training.run, training.run.settings.wandb
    if not (wandb.artifact or wandb.images):
        return
    try:
        saved = checkpoint.latest(storage.join(run.folder, "checkpoint"))
        assert saved is not None, "a finished run has one"
        with tracking.WandbMirror(wandb, run.settings.study, run.name, run.folder, run.settings.model_dump()) as mirror:
            mirror.log_images(_tracked_images(training, device))
            mirror.log_artifact(run.name, saved.folder)
    except Exception as error:  # the run is finished and must not be retried for its images
        bug = None if isinstance(error, LungsegError) else error  # the mirror handles W&B's own failures
        logger.warning("%s: W&B gets no results (%s)", run.name, error, exc_info=bug)


@torch.inference_mode()
def _tracked_images(training: run_state.TrainingState, device: torch.device) -> list[tracking.TrackedImage]:
    """Predict the configured number of held-out images, spread evenly."""
    run, held_out = training.run, training.split.held_out
    count = min(run.settings.wandb.images, len(held_out))
    if not count:
        return []
    samples = [training.reader.read(held_out[i * len(held_out) // count]) for i in range(count)]
    thresholds = storage.read_json(storage.join(run.folder, "run.json"))["thresholds"]
    limits = torch.tensor([thresholds[name] for name in training.classes], device=device)[:, None, None]
    logits = training.learner.eval_model.eval()(to_network_input([sample.image for sample in samples], device))
    masks = (torch.sigmoid(logits.float()) >= limits).to(torch.uint8).cpu().numpy()
    return [
        tracking.TrackedImage(f"{sample.dataset}/{sample.image_id}", sample.image, sample.masks, own, training.classes)
        for sample, own in zip(samples, masks, strict=True)
    ]


def failure_cause(error: BaseException, allocation: WorkerAllocation) -> LungsegError:
    """Return why a run ended: no place for its workers, or the error that one of them raised."""
    controller_error = getattr(error, "controller_failure", None)
    if isinstance(controller_error, LungsegError):  # of StopAtSettingsErrors
        return controller_error
    if type(controller_error).__name__ == "WorkerGroupStartupTimeoutError":
        waited = float(os.environ.get(PLACEMENT_TIMEOUT_VARIABLE, "60")) * _PLACEMENT_ATTEMPTS
        workers = f"{counted(allocation.workers, 'worker')} of {counted(allocation.cpus, 'CPU')}" + (
            " and a GPU" if allocation.gpus else ""
        )
        return ResourceError(
            f"no place for {workers} in {waited:.0f} s: another job holds the resources, or a node was lost: wait, or "
            "lower --workers-per-run"
        )
    failures = list((getattr(error, "worker_failures", {}) or {}).values())
    # When one rank fails, the others only report that they lost the connection to it.
    raised = next((cause for cause in map(unwrapped, failures) if isinstance(cause, LungsegError)), None)
    if raised is not None:
        return raised
    if any(_OUT_OF_MEMORY in str(failure) for failure in [*failures, controller_error, error]):
        return ResourceError(
            "a node ran out of memory, so Ray ended the workers on it: end other programs there, or lower "
            "--runs-at-once or --loader.batch-size"
        )
    lines = [text.splitlines()[-1] for failure in failures if (text := str(failure).strip())]
    last = (str(controller_error or error).strip() or type(controller_error or error).__name__).splitlines()[-1]
    return LungsegError(lines[0] if lines else last)
