"""Ranks of test_distributed.py in their own processes: `ranks_worker.py PREPARED OUT`, one world size after another.

PREPARED holds prepared datasets. Each rank writes OUT/<world_size>-<rank>.json.
"""

import copy
import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lungseg.config import (
    ComputeSettings,
    LoaderSettings,
    ModelSettings,
    OptimSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.dataset.catalog import find_datasets
from lungseg.dataset.folds import RunPlan
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import LungsegError
from lungseg.model import checkpoint_io as saved_weights
from lungseg.model.network import LungNetwork, build_network
from lungseg.training import distributed, epoch_loop, evaluation, loader, run_loop, run_state, train_step
from lungseg.training.run import Progress, Run
from lungseg.training.study_data import open_training_data
from lungseg.training.train_step import Learner

WORLDS = (1, 2, 3, 4)
EPOCHS = 6
GLOBAL_BATCH = 8
BatchNorm = Literal["frozen", "local", "sync"]
GLOBAL_STEPS: dict[BatchNorm, int] = {"frozen": 10, "local": 3, "sync": 3}
SEED = 5
MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none", dropout=0.0)
FROZEN = ComputeSettings(batch_norm="frozen")
CPU = torch.device("cpu")


def network() -> LungNetwork:
    """Return the same weights on every rank, with batch norm statistics of some images so that logits differ."""
    return copy.deepcopy(_built_network())


@functools.cache
def _built_network() -> LungNetwork:
    torch.manual_seed(SEED)
    model = build_network(MODEL).train()
    model(torch.rand(4, 1, 64, 64))
    return model


def evaluated(reader: SampleReader, model: nn.Module, measure: epoch_loop.Measure) -> list[dict[str, Any]]:
    steps = loader.evaluation_steps(len(reader.rows), 2, distributed.rank_and_world_size())
    return epoch_loop.evaluate(model, loader.load_batches(reader, steps, 1), measure, 2)


def trained_on(reader: SampleReader) -> list[list[str]]:
    """Return the ids of this rank's samples, one list per epoch, read through the loader."""
    world = distributed.rank_and_world_size()
    epochs = [loader.training_steps(len(reader.rows), 2, (*world, world[1]), (SEED, epoch)) for epoch in range(2)]
    batches = [loader.load_batches(reader, steps, 1) for steps in epochs]
    return [[sample.image_id for batch in epoch for sample in batch.samples] for epoch in batches]


def trained(
    reader: SampleReader, planned_world_size: int = 0, find_unused: bool = True, **optim: Any
) -> dict[str, Any]:
    """Train with the same global batches of 8 images for any world_size; return losses, weights, batch sizes.

    One optimizer step per epoch. find_unused: as on CPUs; False: as on GPUs.
    """
    rank, world = distributed.rank_and_world_size()
    planned_world_size = planned_world_size or world
    settings = TrainSettings(model=MODEL, compute=FROZEN, optim=OptimSettings(lr=1e-3, **optim))
    learn = Learner(network(), CPU, settings)
    if not find_unused:
        learn._parallel = distributed.wrap_for_ddp(learn.model, CPU, find_unused=False)
    together = settings.optim.accumulate_steps
    losses, sizes = [], []
    for epoch in range(EPOCHS):
        batch = -(-len(reader.rows) // (planned_world_size * together))
        steps = loader.training_steps(
            len(reader.rows), batch, (rank, world, planned_world_size), (SEED, epoch), 1, together
        )
        sizes += [len(step.positions) for step in steps]
        read = loader.load_batches(reader, steps, 1)
        seeds = [epoch * world + rank] * len(steps)
        loss, images = epoch_loop.train_batches(learn, read, [1e-3] * len(steps), seeds, lambda *_: None)
        assert images == len(reader.rows)
        losses.append(loss / images)
    return {"losses": losses, "weights": weights(learn.eval_model), "sizes": sizes}


class _SumOfRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        if dist.is_initialized():
            dist.all_reduce(values)
        return values

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _SumOfRanks.forward(None, gradient)


def _synchronised(module: nn.SyncBatchNorm, images: torch.Tensor) -> torch.Tensor:
    """Normalise with the mean and variance over all ranks, as SyncBatchNorm does on GPUs; torch has none for CPUs."""
    sum_of_ranks: Any = _SumOfRanks.apply
    count = sum_of_ranks(torch.tensor(images.numel() / images.shape[1]))
    mean = sum_of_ranks(images.sum((0, 2, 3))) / count
    centred = images - mean[:, None, None]
    variance = sum_of_ranks(centred.square().sum((0, 2, 3))) / count
    return (
        centred / (variance + module.eps).sqrt()[:, None, None] * module.weight[:, None, None]
        + module.bias[:, None, None]
    )


def global_batch_losses(reader: SampleReader, batch_norm: BatchNorm, planned_world_size: int = 0) -> list[float]:
    """Return the mean loss of each step with one global batch, planned from the settings as a run does it."""
    rank, world = distributed.rank_and_world_size()
    settings = TrainSettings(
        model=MODEL,
        compute=ComputeSettings(batch_norm=batch_norm),
        optim=OptimSettings(lr=1e-3),
        loader=LoaderSettings(global_batch_size=GLOBAL_BATCH),
        workers_per_run=planned_world_size or world,
        seed=SEED,
    )
    planned, losses = settings.planned_world_size, []
    with (
        mock.patch.object(train_step, "resolve_batch_norm", return_value=batch_norm),
        mock.patch.object(nn.SyncBatchNorm, "forward", _synchronised),
        mock.patch.object(nn.parallel.DistributedDataParallel, "_passing_sync_batchnorm_handle"),  # refuses CPUs
    ):
        learn = Learner(network(), CPU, settings)
        for epoch in range(GLOBAL_STEPS[batch_norm]):
            steps = loader.plan_epoch(settings, len(reader.rows), (rank, world, planned), (SEED, epoch))
            read, seeds = loader.load_batches(reader, steps, 1), [0] * len(steps)
            loss, images = epoch_loop.train_batches(learn, read, [1e-3] * len(steps), seeds, lambda *_: None)
            losses.append(loss / images)
    return losses


def weights(model: nn.Module) -> list[float]:
    return [float(parameter.detach().double().sum()) for parameter in model.parameters()]


def shared_buffers() -> tuple[list[float], list[float]]:
    """Return the sums of all buffers before and after the broadcast; every rank starts with its own values."""
    model = network()
    for number, buffer in enumerate(model.buffers()):
        buffer.fill_(number + 1000 * (1 + distributed.rank_and_world_size()[0]))
    before = [float(buffer.double().sum()) for buffer in model.buffers()]
    distributed.broadcast_buffers(model)
    return before, [float(buffer.double().sum()) for buffer in model.buffers()]


RUNS = {
    "local": TrainSettings(compute=ComputeSettings(batch_norm="local"), optim=OptimSettings(lr=1e-3)),
    "frozen": TrainSettings(
        compute=FROZEN,
        loader=LoaderSettings(batch_size=1),
        optim=OptimSettings(lr=1e-3, ema_decay=0.9, accumulate_steps=2, clip_norm=1.0),
        choose_threshold=True,
    ),
}


class CrashError(Exception):
    """Simulates the end of the process."""


def whole_run(folders: list[str], folder: str, kind: str, ends: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Train and test one run; if `ends` is a (epoch, batch), end it there on all ranks and start it again."""
    changes = {
        "folds": 5,
        "epochs": 2,
        "workers_per_run": 2,
        "save_steps": 1,
        "model": ModelSettings(encoder=MODEL.encoder, weights="none", dropout=0.5),
        "wandb": WandbSettings(mode="disabled"),
    }
    settings = RUNS[kind].model_copy(update=changes)
    plan = RunPlan("source-to-source", ("north",), fold=0, folds=5, split_seed=3, validates=settings.validates)
    if kind == "frozen":
        plan = replace(
            plan, protocol="pooled", train_on=("north", "south"), fold=3
        )  # 6 training, 1 validation and 1 held-out image
    run = Run(settings, plan, tuple(folders), f"run-{kind}", folder)

    def show(progress: Progress) -> None:
        if (progress.epoch, progress.step) == ends:
            raise CrashError

    training = run_state.start(run, CPU)
    with mock.patch.object(saved_weights, "save", wraps=saved_weights.save) as save:
        try:
            run_loop.finish(training, show)
        except CrashError:
            distributed.wait_for_all_ranks()
            return {"began_at": (training.epoch, training.step), **whole_run(folders, folder, kind)}
    tested = training.learner.eval_model
    state = [*weights(tested), *(float(buffer.double().sum()) for buffer in tested.buffers())]
    return {
        "summary": run_loop.finish(run_state.start(run, CPU), lambda _: None),
        "state": state,
        "saved": save.call_count,
    }


def refused(folders: list[str], folder: str) -> str:
    """Return the error of a run with too few images for its ranks."""
    settings = TrainSettings(folds=5, model=MODEL, wandb=WandbSettings(mode="disabled"))
    plan = RunPlan("source-to-source", ("north",), fold=0, folds=5, split_seed=3)
    try:
        run_state.start(Run(settings, plan, tuple(folders), "too-few", folder), CPU)
    except LungsegError as error:
        return str(error)
    return ""


def work(rank: int, world: int, prepared: str, out: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/store-{world}", rank=rank, world_size=world)
    folders = find_datasets([prepared])
    reader = SampleReader(open_training_data(folders), 64)
    results: dict[str, Any] = {"rank_and_world_size": distributed.rank_and_world_size()}
    if GLOBAL_BATCH % world == 0:
        results["global batch"] = {kind: global_batch_losses(reader, kind) for kind in GLOBAL_STEPS}
    if world < 4:
        results |= every_result(reader, folders, rank, world, out)
    distributed.wait_for_all_ranks()
    Path(out, f"{world}-{rank}.json").write_text(json.dumps(results))
    if world > 1:
        dist.destroy_process_group()


def every_result(reader: SampleReader, folders: list[str], rank: int, world: int, out: str) -> dict[str, Any]:
    results: dict[str, Any] = {
        "gathered": distributed.gather(f"of {rank}"),
        "rows": evaluated(reader, network(), evaluation.measure_at_prepared_size({"lung": 0.5})),
        "native": evaluated(reader, network(), evaluation.measure_at_native_size({"lung": 0.5})),
        "trained_on": trained_on(reader),
    }
    results["steps"] = {"accumulating": trained(reader, accumulate_steps=2)}
    if world != 2:  # two ranks are those of "global batch"
        results["steps"]["plain"] = trained(reader)
    if world > 1:
        results["steps"]["of four planned ranks"] = trained(reader, planned_world_size=4, find_unused=False)
        results["local of four planned ranks"] = global_batch_losses(reader, "local", planned_world_size=4)
    if world < 3:
        results["steps"]["clipped, averaged"] = trained(reader, clip_norm=0.1, ema_decay=0.5)
    results["buffers"] = shared_buffers()
    if world == 2:
        results["runs"] = {kind: whole_run(folders, f"{out}/{kind}", kind) for kind in RUNS}
        ends = {"local": (2, 1), "frozen": (2, 3)}
        results["killed"] = {kind: whole_run(folders, f"{out}/{kind}-killed", kind, ends[kind]) for kind in RUNS}
    if world == 3:
        results["refused"] = refused(folders, f"{out}/refused")
    return results


if __name__ == "__main__":
    # Forked to import torch once; nothing that a fork would break has been computed yet.
    for size in WORLDS:
        mp.start_processes(work, (size, *sys.argv[1:]), nprocs=size, start_method="fork")
