"""What test_ranks runs in processes of its own: `ranks_worker.py PREPARED OUT`, every world after the other.

PREPARED holds prepared data sets. Each rank of each world writes OUT/<world>-<rank>.json.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from lungseg.config import LoaderSettings, LossSettings, ModelSettings, OptimSettings, TrainSettings, WandbSettings
from lungseg.data import loader
from lungseg.data.datasets import find_datasets
from lungseg.data.folds import RunPlan
from lungseg.data.reader import SampleReader
from lungseg.engine import checkpoint, fit, loop, ranks
from lungseg.errors import LungsegError
from lungseg.model.network import LungNetwork, build

WORLDS = (1, 2, 3)
EPOCHS = 6
SEED = 5
MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
CPU = torch.device("cpu")


def network() -> LungNetwork:
    """Build the same weights on every rank; statistics of some pictures, so that logits differ from each other."""
    torch.manual_seed(SEED)
    model = build(MODEL).train()
    model(torch.rand(4, 1, 64, 64))
    return model


def freeze(model: LungNetwork) -> LungNetwork:
    """Keep batch norm and dropout in evaluation, whatever `train()` asks for."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.train = lambda *_, module=module: module  # type: ignore[method-assign,misc,assignment]
    return model


def evaluated(reader: SampleReader, model: nn.Module) -> list[dict[str, Any]]:
    steps = loader.evaluation_steps(len(reader.rows), 2, ranks.rank_and_world())
    return loop.evaluate(model, loader.batches(reader, steps, 1), 0.5)


def trained_on(reader: SampleReader) -> list[list[str]]:
    """Ids of this rank's samples, a list an epoch, read through the loader."""
    world = ranks.rank_and_world()
    epochs = [loader.training_steps(len(reader.rows), 2, world, (SEED, epoch)) for epoch in range(2)]
    batches = [loader.batches(reader, steps, 1) for steps in epochs]
    return [[sample.image_id for batch in epoch for sample in batch.samples] for epoch in batches]


def trained(reader: SampleReader) -> tuple[list[float], list[float], list[int]]:
    """Train with the same global batches in every world, all images in each: losses, weights, sizes of the batches."""
    rank, world = ranks.rank_and_world()
    model = freeze(network())
    parallel = ranks.data_parallel(model, CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, sizes = [], []
    for epoch in range(EPOCHS):
        batch = -(-len(reader.rows) // world)
        steps = loader.training_steps(len(reader.rows), batch, (rank, world), (SEED, epoch))
        sizes += [len(step.positions) for step in steps]
        read = loader.batches(reader, steps, 1)
        rates = [0.1] * len(steps)
        losses.append(loop.train_epoch(parallel, read, optimizer, LossSettings(), rates, lambda _: None))
    return losses, weights(model), sizes


def weights(model: nn.Module) -> list[float]:
    return [float(parameter.detach().double().sum()) for parameter in model.parameters()]


def shared_buffers() -> tuple[list[float], list[float]]:
    """Sums of all buffers before and after they are shared; every rank begins with its own."""
    model = network()
    for number, buffer in enumerate(model.buffers()):
        buffer.fill_(number + 1000 * (1 + ranks.rank_and_world()[0]))
    before = [float(buffer.double().sum()) for buffer in model.buffers()]
    ranks.share_buffers(model)
    return before, [float(buffer.double().sum()) for buffer in model.buffers()]


def whole_run(folders: list[str], folder: str) -> dict[str, Any]:
    """One run as the pipeline does it, started twice: the second finds it finished."""
    settings = TrainSettings(
        folds=5,
        seed=3,
        epochs=2,
        workers=2,
        model=MODEL,
        optim=OptimSettings(lr=1e-3),
        loader=LoaderSettings(batch=2, threads=1),
        wandb=WandbSettings(mode="disabled"),
    )
    plan = RunPlan("source-to-source", ("north",), fold=0, folds=5, seed=3)
    run = fit.Run(settings, plan, tuple(folders), "from-north-fold0", folder)
    training = fit.start(run, CPU)
    with mock.patch.object(checkpoint, "save", wraps=checkpoint.save) as save:
        fit.finish(training, lambda _: None)
    state = [*weights(training.model), *(float(buffer.double().sum()) for buffer in training.model.buffers())]
    return {"summary": fit.finish(fit.start(run, CPU), lambda _: None), "state": state, "saved": save.call_count}


def refused(folders: list[str], folder: str) -> str:
    """What a run says that has too few images for its ranks."""
    settings = TrainSettings(folds=5, model=MODEL, wandb=WandbSettings(mode="disabled"))
    plan = RunPlan("source-to-source", ("north",), fold=0, folds=5, seed=3)
    try:
        fit.start(fit.Run(settings, plan, tuple(folders), "too-few", folder), CPU)
    except LungsegError as error:
        return str(error)
    return ""


def work(rank: int, world: int, prepared: str, out: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/store-{world}", rank=rank, world_size=world)
    folders = find_datasets([prepared])
    reader = SampleReader(fit.open_data(folders), 64)
    found: dict[str, Any] = {
        "rank_and_world": ranks.rank_and_world(),
        "gathered": ranks.gather(f"of {rank}"),
        "rows": evaluated(reader, network()),
        "trained_on": trained_on(reader),
    }
    found["losses"], found["weights"], found["sizes"] = trained(reader)
    found["buffers"] = shared_buffers()
    if world == 2:
        found |= whole_run(folders, f"{out}/run")
    if world == 3:
        found["refused"] = refused(folders, f"{out}/refused")
    ranks.wait_for_all()
    Path(out, f"{world}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that what takes seconds to import is imported once; nothing was computed yet that a fork would break.
    for size in WORLDS:
        mp.start_processes(work, (size, *sys.argv[1:]), nprocs=size, start_method="fork")
