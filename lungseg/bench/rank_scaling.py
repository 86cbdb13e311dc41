"""Time a training step on several ranks of one machine, each in its own process, without Ray."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lungseg.bench.device import count_cores
from lungseg.bench.training_stages import make_batch
from lungseg.config import BenchSettings, TrainSettings
from lungseg.model.network import build_network
from lungseg.training.distributed import wait_for_all_ranks
from lungseg.training.train_step import Learner

_WARM_UP, _STEPS = 3, 5
_RATE = 1e-4


def world_sizes(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    sizes = [2**power for power in range(most.bit_length())]
    return sorted({*sizes, most})


def measure_ranks(settings: BenchSettings, size: int, on_gpus: bool, most: int) -> Iterator[dict[str, Any]]:
    """Yield the line of each number of ranks, as `time_steps` returns it, with the speed-up over one rank.

    Every rank has a batch of the same size, so a perfect speed-up is the number of ranks.
    """
    first = 0.0
    for world_size in world_sizes(most):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, (world_size, settings, size, on_gpus, folder), nprocs=world_size)  # type: ignore[no-untyped-call,attr-defined]
            line = json.loads(Path(folder, "line.json").read_text())
        first = first or line["images_per_second"]
        yield {**line, "speedup": round(line["images_per_second"] / first, 3)}


def time_steps(
    settings: TrainSettings, size: int, device: torch.device, world_size: int = 1, steps: int = _STEPS
) -> dict[str, Any]:
    """Time training steps of this rank; return workers, images per second of all ranks, and ms a step (median)."""
    learner = Learner(build_network(settings.model, pretrained=False), device, settings)
    batch = make_batch(settings.rank_batch_size, size, device, world_size)
    durations = []
    for number in range(_WARM_UP + steps):
        wait_for_all_ranks()
        began = time.perf_counter()
        learner(batch, _RATE)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= _WARM_UP:
            durations.append(time.perf_counter() - began)
    seconds = median(durations)
    return {
        "workers": world_size,
        "images_per_second": round(world_size * len(batch.images) / seconds, 3),
        "step_ms": round(1000.0 * seconds, 3),
    }


def _of_ranks(settings: TrainSettings, world_size: int) -> TrainSettings:
    """Return the settings of a training with this many ranks, each with the batch of one rank alone."""
    loader = settings.loader.model_copy(update={"batch_size": settings.rank_batch_size, "global_batch_size": 0})
    return settings.model_copy(update={"loader": loader, "workers_per_run": world_size})


def _work(rank: int, world_size: int, settings: BenchSettings, size: int, on_gpus: bool, folder: str) -> None:
    """Time the steps in the process of one rank; rank 0 writes them to folder/line.json."""
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, count_cores() // world_size))
    store = f"file://{folder}/store"
    dist.init_process_group("nccl" if on_gpus else "gloo", init_method=store, rank=rank, world_size=world_size)
    try:
        line = time_steps(_of_ranks(settings.training, world_size), size, device, world_size)
        if rank == 0:
            Path(folder, "line.json").write_text(json.dumps(line))
    finally:
        dist.destroy_process_group()
