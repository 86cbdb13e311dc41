"""One run of a study as a Ray Train job: placed, started, watched, and told why it failed."""

import logging
import os
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lungseg import logs, storage
from lungseg.cluster.connection import PLACEMENT_TIMEOUT_VARIABLE
from lungseg.cluster.gauges import Gauges
from lungseg.cluster.resources import WorkerAllocation
from lungseg.errors import InputError, LungsegError, ResourceError, TaskResult, unwrapped
from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import How
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory
from lungseg.progress import SharedProgressLine
from lungseg.training import run_loop, run_state, tracking
from lungseg.training.distributed import gather, rank_and_world_size
from lungseg.training.run import Progress, Run, ShowProgress, name_run
from lungseg.training.study_data import open_training_data

logger = logging.getLogger(__name__)

_POST_EVERY_S = 0.5
_READ_S, _LAST_READ_S = 5.0, 30.0  # on a busy machine; what the last look misses is never told
_PLACE_TRIES = 3  # each of the time of PLACEMENT_TIMEOUT_VARIABLE; Ray Train by itself would try for ever


def train(one: Run, placed: WorkerAllocation, line: SharedProgressLine) -> None:
    """Train and test a run, from wherever an earlier start left it. It may be called from several threads at once.

    Raises:
        LungsegError: it could not be placed, a user's mistake came to light, or workers failed too often.

    """
    device = "GPU" if placed.gpus else "CPU"
    line.log(one.name, f"{placed.workers} workers, {placed.cpus} CPUs each, on {device}")
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # as long-lived as the job
    board = _Board.options(num_cpus=0, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    shown = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, one, shown, line), daemon=True)
    watcher.start()
    try:
        result = _trainer(one, placed, board).fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, placed) from error
    finally:
        shown.set()
        watcher.join()
        line.remove(one.name)
        if not line.closed.is_set():
            ray.kill(board)
    (getattr(result, "return_value", None) or TaskResult()).unwrap()


def _trainer(one: Run, placed: WorkerAllocation, board: Any) -> TorchTrainer:
    least, seats = one.settings.min_workers, one.settings.planned_world_size
    if placed.gpus and one.settings.loader.threads == "auto":
        one = _with_threads(one, placed.cpus)
    return TorchTrainer(
        _one_rank,  # type: ignore[arg-type]  # what it returns is Result.return_value
        train_loop_config={"run": one, "board": board},
        scaling_config=ray.train.ScalingConfig(
            # Fewer take over all steps of the lost ones, until a node comes in their place.
            num_workers=(least, seats) if 0 < least < seats else placed.workers,  # type: ignore[arg-type]
            use_gpu=bool(placed.gpus),
            resources_per_worker={"CPU": placed.cpus, **({"GPU": 1} if placed.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=one.name,
            storage_path=storage.join(storage.parent_of(one.folder), ".ray-train"),
            failure_config=ray.train.FailureConfig(
                max_failures=one.settings.max_failures,
                controller_failure_limit=_PLACE_TRIES - 1,  # type: ignore[call-arg]  # Ray types its old class
            ),
        ),
    )


def _with_threads(one: Run, cpus: int) -> Run:
    loader = one.settings.loader.model_copy(update={"threads": max(2, cpus)})
    return replace(one, settings=one.settings.model_copy(update={"loader": loader}))


def _one_rank(config: dict[str, Any]) -> TaskResult:
    """Train one rank. An error at the start is returned: a raised one would make Ray Train start the run again."""
    run, board, rank = config["run"], config["board"], rank_and_world_size()[0]
    first = rank == 0
    logs.configure(prefix=f"{run.settings.study} {run.name} rank {rank}: ")
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects through the current device: the first, unless told
    else:
        keep_freed_memory()
    started = TaskResult.of(_start, run, device)
    errors = [error for error in gather(started.error) if error is not None]
    if errors:
        return TaskResult(error=errors[0])
    training: run_state.TrainingState = started.value
    if len(set(gather((training.epoch, training.step, *training.learner.compute_mode.values())))) > 1:
        # Raised, so that Ray tries again: a network file system shows a new checkpoint late.
        raise LungsegError(f"{training.run.name}: its ranks found different checkpoints, or compute in other ways")
    show = _shower(run, rank, board)
    if first and (training.epoch or training.step):
        show(Progress(training.epoch, 0, 0, 0.0, "going on from its checkpoint"))
    run_loop.finish(training, show)
    if first:
        _add_results(training, device)
    return TaskResult()


def _shower(run: Run, rank: int, board: Any) -> ShowProgress:
    """Make what shows a rank's progress: to its log and the cluster's monitoring, and of rank 0 to the driver."""
    gauges, posted = Gauges("train", run.name, rank), 0.0

    def show(progress: Progress) -> None:
        nonlocal posted
        if progress.note:
            logger.info("epoch %d: %s", progress.epoch, progress.note)
        else:
            gauges.set("images_per_second", progress.images_per_second)
            gauges.set("device_wait_share", progress.device_wait_share)
            gauges.set("loss", progress.loss)
        if rank == 0 and (progress.note or time.monotonic() - posted > _POST_EVERY_S):
            posted = time.monotonic()
            board.post.remote(progress)

    return show


def _start(run: Run, device: torch.device) -> run_state.TrainingState:
    if rank_and_world_size()[0] == 0:
        _require_same_data(run)
    return run_state.start(run, device)


def _require_same_data(run: Run) -> None:
    """Refuse data that were prepared anew since the study named its runs after their digests."""
    if name_run(run.settings, run.plan, open_training_data(run.data)) != run.name:
        raise InputError(f"{run.name}: its data changed since the study began: start the same command again")


def _add_results(training: run_state.TrainingState, device: torch.device) -> None:
    """Give W&B the checkpoint and some pictures, where asked."""
    run, asked = training.run, training.run.settings.wandb
    if not (asked.artifact or asked.images):
        return
    try:
        found = checkpoint.latest(storage.join(run.folder, "checkpoint"))
        assert found is not None, "a finished run has one"
        with tracking.WandbMirror(asked, run.settings.study, run.name, run.folder, run.settings.model_dump()) as mirror:
            mirror.log_images(_pictures(training, Predictor(found, How(str(device)))))
            mirror.log_artifact(run.name, found.folder)
    except Exception as error:  # the run is finished: it must not be tried again for its pictures
        bug = None if isinstance(error, LungsegError) else error  # W&B's own failures end in the mirror
        logger.warning("%s: W&B gets no results (%s)", run.name, error, exc_info=bug)


def _pictures(training: run_state.TrainingState, predictor: Predictor) -> list[tracking.TrackedImage]:
    """Predict as many held-out images as the settings ask for, spread evenly over all."""
    run, held_out = training.run, training.split.held_out
    count = min(run.settings.wandb.images, len(held_out))
    if not count:
        return []
    samples = [training.reader.read(held_out[i * len(held_out) // count]) for i in range(count)]
    threshold = storage.read_json(storage.join(run.folder, "run.json"))["threshold"]
    masks = (predictor.probabilities([one.image for one in samples]) >= threshold).astype(np.uint8)
    return [
        tracking.TrackedImage(f"{one.dataset}/{one.image_id}", one.image, one.mask, mask)
        for one, mask in zip(samples, masks, strict=True)
    ]


@ray.remote
class _Board:
    """Where rank 0 pins its progress, and the driver reads it."""

    def __init__(self) -> None:
        self._notes: list[Progress] = []
        self._now: Progress | None = None

    def post(self, progress: Progress) -> None:
        """Keep the newest state, and every note until it is read."""
        self._now = progress
        if progress.note:
            self._notes.append(progress)

    def read(self) -> tuple[list[Progress], Progress | None]:
        """Take the notes down; show the newest state."""
        notes, self._notes = self._notes, []
        return notes, self._now


def _watch(board: Any, one: Run, ended: threading.Event, line: SharedProgressLine) -> None:
    """Show a run's progress until it ends, and then what was still unread."""
    epochs, began = one.settings.epochs, time.monotonic()
    last = False
    while not last:
        last = ended.wait(_POST_EVERY_S)
        if line.closed.is_set():
            return
        try:
            notes, now = ray.get(board.read.remote(), timeout=_LAST_READ_S if last else _READ_S)
        except ray.exceptions.RayError:
            continue  # the board's node is lost or busy; the run's own fate is told by fit()
        for note in notes:
            line.log(one.name, f"epoch {note.epoch}/{epochs}: {note.note}")
        if now is None:
            line.update(one.name, f"starting workers, {time.monotonic() - began:.0f} s")
        elif not now.note:
            line.update(one.name, f"epoch {now.epoch}/{epochs}, step {now.step}/{now.total_steps}, loss {now.loss:.3f}")


def _explained(error: BaseException, placed: WorkerAllocation) -> LungsegError:
    """Say in one line what ended a run: no place for its workers, or what the first of them with a story said."""
    inner = getattr(error, "controller_failure", None)
    if type(inner).__name__ == "WorkerGroupStartupTimeoutError":
        waited = float(os.environ.get(PLACEMENT_TIMEOUT_VARIABLE, "60")) * _PLACE_TRIES
        what = f"{placed.workers} workers of {placed.cpus} CPUs" + (" and a GPU" if placed.gpus else "")
        return ResourceError(
            f"no place for {what} in {waited:.0f} s: another job holds them or a node was lost: wait for it, or lower "
            "--workers-per-run"
        )
    failures = list((getattr(error, "worker_failures", {}) or {}).values())
    # When one rank fails, the others report only that they lost it.
    raised = next((cause for cause in map(unwrapped, failures) if isinstance(cause, LungsegError)), None)
    if raised is not None:
        return raised
    lines = [text.splitlines()[-1] for failure in failures if (text := str(failure).strip())]
    last = (str(inner or error).strip() or type(inner or error).__name__).splitlines()[-1]
    return LungsegError(lines[0] if lines else last)
