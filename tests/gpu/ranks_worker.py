"""Ranks of test_two_gpus.py in their own processes: `ranks_worker.py PREPARED OUT`, first one rank, then two.

Each rank has a GPU of its own and writes OUT/<world_size>-<rank>.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lungseg.config import ComputeSettings, LoaderSettings, OptimSettings, TrainSettings
from lungseg.dataset.catalog import find_datasets
from lungseg.dataset.sample_reader import SampleReader
from lungseg.model.network import LungNetwork, build_network
from lungseg.training import distributed, epoch_loop, loader
from lungseg.training.study_data import open_training_data
from lungseg.training.train_step import Learner
from tests.gpu.runs import DEVICE, MODEL

STEPS = 4
KINDS: dict[str, dict[str, Any]] = {
    "frozen": {"batch_norm": "frozen"},
    "sync": {"batch_norm": "sync"},
    "elastic": {"batch_norm": "auto"},
}


def network() -> LungNetwork:
    """Return the same weights on every rank, with batch norm statistics of some images."""
    torch.manual_seed(5)
    model = build_network(MODEL).train()
    model(torch.rand(4, 1, 64, 64))
    return model


def losses(reader: SampleReader, device: torch.device, kind: str) -> list[float]:
    """Return the mean loss of each step of 8 images; `elastic`: planned for 3 ranks, of which one takes two shares."""
    rank, world = distributed.rank_and_world_size()
    elastic = kind == "elastic"
    planned = 3 if elastic else world
    mode = "local" if kind == "sync" and world == 1 else KINDS[kind]["batch_norm"]
    settings = TrainSettings(
        model=MODEL,
        compute=ComputeSettings(batch_norm=mode, precision="fp32"),
        optim=OptimSettings(lr=1e-3, ema_decay=0.9),
        loader=LoaderSettings(batch_size="auto", global_batch_size=0 if elastic else 8),
        workers_per_run=planned,
        min_workers=1 if elastic else 0,
    )
    if elastic:
        settings = settings.model_copy(update={"loader": LoaderSettings(batch_size=3)})
    learner, result = Learner(network(), device, settings), []
    for epoch in range(STEPS):
        steps = loader.plan_epoch(settings, len(reader.rows), (rank, world, planned), (5, epoch))
        batches, seeds = loader.load_batches(reader, steps, 1), [0] * len(steps)
        loss, images = epoch_loop.train_batches(learner, batches, [1e-3] * len(steps), seeds, lambda *_: None)
        result.append(loss / images)
    return result


def work(rank: int, world: int, prepared: str, out: str) -> None:
    device = torch.device(DEVICE.type, rank if DEVICE.type == "cuda" else 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{out}/store", rank=rank, world_size=world)
    reader = SampleReader(open_training_data(find_datasets([prepared])), 64)
    kinds = [kind for kind in KINDS if kind != "sync" or device.type == "cuda"]
    results = {kind: losses(reader, device, kind) for kind in kinds}
    distributed.wait_for_all_ranks()
    Path(out, f"{world}-{rank}.json").write_text(json.dumps(results))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    for size in (1, 2):
        mp.start_processes(work, (size, *sys.argv[1:]), nprocs=size, start_method="spawn")
