"""Choose workers, device and threads of a study, which its runs keep, and reserve the resources on the cluster."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Literal

from lungseg import storage
from lungseg.arrays import Row
from lungseg.cluster.connection import connect
from lungseg.cluster.node_checks import problem_of_a_node
from lungseg.cluster.resources import (
    WorkerAllocation,
    allocate_runs,
    initial_workers,
    require_memory,
    warn_of_idle_gpus,
    workers_per_run,
)
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.errors import ResourceError
from lungseg.model import network
from lungseg.model.compiler import missing_for_compile
from lungseg.storage.json_files import JsonFields, Whole
from lungseg.training.train_step import check_compute_settings

logger = logging.getLogger(__name__)

_LOADER_PROCESS_MIB = 150
_LIBRARIES_MIB = 800  # torch, and an encoder with the two moments of Adam, on a CPU


class _Compute(JsonFields):
    threads: Literal["auto"] | Whole = "auto"


class _Settings(JsonFields):
    workers_per_run: Literal["auto"] | Whole = "auto"
    device: str = "auto"
    compute: _Compute = _Compute()


class _StudyFields(JsonFields):
    settings: _Settings


def settings_of_study(settings: TrainSettings, study: str) -> TrainSettings:
    """Replace `auto` workers, device and threads by those that the study was started with."""
    path = storage.join(study, "study.json")
    recorded = storage.read_json(path, fields=_StudyFields)["settings"] if storage.exists(path) else {}
    return _replace_auto(settings, recorded)


def settings_for_cluster(settings: TrainSettings, runs: int) -> TrainSettings:
    """Replace `auto` workers, device and threads by what the cluster has for each run.

    They become settings, because they are part of what defines a run: other ones give other weights.

    Raises:
        ResourceError: the cluster is too small, or another job uses it.

    """
    if "auto" not in (settings.workers_per_run, settings.device, settings.compute.threads):
        return settings
    connect()
    if settings.workers_per_run == "auto":
        settings = _replace_auto(settings, {"workers_per_run": workers_per_run(runs, settings.device)})
    _, allocation = _allocate_runs(settings, runs)
    device = "gpu" if allocation.gpus else "cpu"
    chosen = _replace_auto(settings, {"device": device, "compute": {"threads": allocation.cpus}})
    workers, threads = f"--workers-per-run {chosen.workers_per_run}", f"--compute.threads {chosen.compute.threads}"
    logger.info("this study trains with %s --device %s %s", workers, chosen.device, threads)
    return chosen


def _replace_auto(settings: TrainSettings, values: Row) -> TrainSettings:
    """Replace the settings that are `auto` by the given values, where there are any."""
    changes: Row = {
        name: values[name]
        for name in ("workers_per_run", "device")
        if getattr(settings, name) == "auto" and name in values
    }
    threads = values.get("compute", {}).get("threads", "auto")
    if settings.compute.threads == "auto" and threads != "auto":
        changes["compute"] = settings.compute.model_copy(update={"threads": threads})
    return settings.model_copy(update=changes)


def allocate(
    settings: TrainSettings, runs: int, study: str, data: Sequence[PreparedDataset]
) -> tuple[int, WorkerAllocation]:
    """Connect to the cluster and check it; return the number of concurrent runs and the resources of a worker.

    Raises:
        LungsegError: the network cannot be built, or the cluster cannot provide what the runs need.

    """
    with network.skip_weight_init():
        network.build_network(settings.model)  # reports a wrong encoder or missing weights before workers start
    connect()
    at_once, allocation = _allocate_runs(settings, runs)
    # Checked after the allocation, when an autoscaler has added the requested nodes.
    tables = [settings.folds_from] if settings.folds_from else []
    require_shared_storage(study, [*tables, *(storage.join(dataset.folder, "dataset.json") for dataset in data)])
    check_compute_settings(settings, bool(allocation.gpus))
    if allocation.gpus:
        warn_of_idle_gpus(runs, at_once, allocation.workers)
    if settings.compute.compile:
        _require_compiler(bool(allocation.gpus))
    require_memory(allocation, at_once * allocation.workers, _memory_mib(settings, data, allocation))
    return at_once, allocation


def _require_compiler(on_gpus: bool) -> None:
    """Check that torch.compile works on the nodes.

    Raises:
        ResourceError: a node lacks something that it needs.

    """
    if problem := problem_of_a_node(partial(missing_for_compile, on_gpus), "GPU" if on_gpus else "CPU"):
        raise ResourceError(f"--compute.compile: node {problem}: install it there, or leave out --compute.compile")


def _allocate_runs(settings: TrainSettings, runs: int) -> tuple[int, WorkerAllocation]:
    planned = settings.planned_world_size
    workers = initial_workers(settings.min_workers or planned, planned, settings.device)
    return allocate_runs(workers, settings.device, runs, settings.runs_at_once)


def _memory_mib(settings: TrainSettings, data: Sequence[PreparedDataset], allocation: WorkerAllocation) -> int:
    """Return the memory of a worker: its libraries, its cache of decoded samples, and its loader processes."""
    pixels: int = sum(dataset.index.num_rows * dataset.preprocess.size**2 for dataset in data)
    loader = settings.loader.for_rank(allocation.cpus, bool(allocation.gpus))
    processes = loader.process_count * _LOADER_PROCESS_MIB
    return _LIBRARIES_MIB + processes + min(loader.cache_mib, 2 * pixels // 2**20)
