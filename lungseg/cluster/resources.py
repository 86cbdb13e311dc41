"""Allocate CPUs and GPUs of a cluster to a job, and check before any work that they are available."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from lungseg.cluster.connection import cluster_total
from lungseg.errors import ResourceError
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

_WAIT_S = 60.0  # for CPUs that another job may free
_SETTLE_S = 10.0  # for more CPUs or GPUs than the minimum
_SCALE_S = 900.0  # for an autoscaler to start nodes: boot, pull an image of several GB, load the driver
_LOG_INTERVAL_S = 30.0
_MAX_CPUS_PER_GPU = 16  # more threads decode faster than a GPU trains
_RUN_OPTION = "--workers-per-run"


@dataclass(frozen=True)
class WorkerAllocation:
    """Number of workers, and the CPUs and GPUs of each."""

    workers: int
    cpus: int
    gpus: int


def allocate_workers(workers: int | str, device: str) -> WorkerAllocation:
    """Divide the cluster among workers: one GPU and its CPUs each, or equal shares of the CPUs.

    auto: one worker per GPU, or per CPU without GPUs.

    Raises:
        ResourceError: the cluster is too small, or another job uses it.

    """
    requested = 0 if workers == "auto" else int(workers)
    cpus, gpus = _reachable("CPU"), _reachable("GPU")
    use_gpu = _uses_gpus(device, max(requested, 1), gpus, "--workers")
    count = max(requested or (gpus if use_gpu else cpus), 1)
    minimum = requested or 1
    if use_gpu:
        count = min(count, _wait_for("GPU", (minimum, count), "--workers"))
        require_cpus(count)
        return WorkerAllocation(count, _cpus_per_gpu(count), 1)
    free = _wait_for("CPU", (minimum, count), "--workers", and_rest=True)
    count = min(count, free)
    return WorkerAllocation(count, _cpus_without_gpu(free, count), 0)


def allocate_runs(workers: int, device: str, runs: int, at_once: int | str) -> tuple[int, WorkerAllocation]:
    """Return how many runs of a study train at once, and the resources of each worker.

    workers: per run. at_once auto: as many as fit beside other jobs. A worker gets one GPU and its CPUs, or an equal
    share of the CPUs.

    Raises:
        ResourceError: the cluster is too small for one run or for `at_once`, or another job uses it.

    """
    requested = 0 if at_once == "auto" else int(at_once)
    cpus, gpus = _reachable("CPU"), _reachable("GPU")
    use_gpu = _uses_gpus(device, workers, gpus, _RUN_OPTION)
    capacity = min(cpus, gpus) // workers if use_gpu else cpus // workers
    if capacity and requested > capacity and runs > capacity:
        raise ResourceError(
            f"--runs-at-once {requested} with {counted(workers, 'worker')} each: the cluster has "
            f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}, "
            f"enough for {capacity}: pass --runs-at-once {capacity}, or add nodes"
        )
    count = min(runs, requested or max(capacity, 1))
    minimum, option = (count * workers, "--runs-at-once") if requested and count > 1 else (workers, _RUN_OPTION)
    if use_gpu:
        count = min(count, _wait_for("GPU", (minimum, count * workers), option) // workers)
    free = _wait_for("CPU", (minimum, count * workers), option, and_rest=not use_gpu)
    count = min(count, free // workers)
    if use_gpu:
        return count, WorkerAllocation(workers, _cpus_per_gpu(count * workers), 1)
    return count, WorkerAllocation(workers, _cpus_without_gpu(free, count * workers), 0)


def warn_of_idle_gpus(runs: int, at_once: int, workers: int) -> None:
    """Warn of free GPUs that a study leaves idle, and name the setting that would use them, if one would.

    workers: per run, each with a GPU.
    """
    free, used = _free("GPU"), at_once * workers
    more_runs, per_run = min(runs, free // workers), free // max(runs, 1)
    if more_runs > at_once:
        remedy = f"--runs-at-once {more_runs}"
    elif per_run > workers:
        remedy = f"{_RUN_OPTION} auto"
    else:
        return
    logger.warning("%d of %d GPUs idle: pass %s", free - used, cluster_total("GPU"), remedy)


def environment_without_gpus() -> dict[str, dict[str, str]]:
    """Return the runtime environment of workers without a GPU: none of their node's is visible to them.

    torch's optimizers ask for the GPU's stream, and so open a context on the first one, also for weights on CPUs.
    """
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if cluster_total("GPU") else {}


def own_device() -> str:
    """Return the device of the task or actor that calls this: cuda if Ray gave it a GPU, else cpu.

    A task without one still sees the GPUs of its node, and would open a context on the first.
    """
    has_gpu = ray.is_initialized() and ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cuda" if has_gpu else "cpu"


def workers_per_run(runs: int, device: str) -> int:
    """Return the workers of each run when all runs train at once: an equal share of the GPUs, at least 1."""
    gpus = _reachable("GPU") if device != "cpu" else 0
    return max(1, gpus // max(runs, 1))


def initial_workers(minimum: int, planned: int, device: str) -> int:
    """Return how many workers a run starts with: `planned`, or fewer on a small cluster, at least `minimum`."""
    on_gpus = device == "gpu" or (device == "auto" and _reachable("GPU") >= minimum)
    return max(minimum, min(planned, _reachable("GPU" if on_gpus else "CPU")))


def require_memory(allocation: WorkerAllocation, workers: int, mib: int) -> None:
    """Log the resources of each worker, and check that the nodes have enough memory for all workers.

    mib: memory of a worker without its batches, whose size depends on the network.

    Raises:
        ResourceError: the nodes have too little memory.

    """
    devices = counted(allocation.cpus, "CPU") + (" and a GPU" if allocation.gpus else "")
    logger.info("%s, each with %s and %d MiB plus its batches", counted(workers, "worker"), devices, mib)
    nodes = _node_resources()
    by_cpus = [node.get("CPU", 0) // allocation.cpus for node in nodes]
    by_memory = [min(node.get("memory", 0.0) / 2**20 // mib, count) for node, count in zip(nodes, by_cpus, strict=True)]
    if sum(by_memory) < workers <= sum(by_cpus):
        raise ResourceError(
            f"{counted(workers, 'worker')} with {mib} MiB each: the nodes have memory for {int(sum(by_memory))}: lower "
            "--loader.cache-mib or the number of workers, or add memory"
        )


def cpus_per_worker(nodes: Sequence[int], workers: int) -> int:
    """Return the most CPUs that each worker can have if no worker spans two nodes, at least 1. nodes: CPUs of each."""
    most = max([sum(nodes) // workers, 1])
    return next((count for count in range(most, 1, -1) if sum(cpus // count for cpus in nodes) >= workers), 1)


def require_cpus(count: int, option: str = "--workers") -> None:
    """Wait until this many CPUs are free. option: the setting that the error message suggests to lower.

    Without this check, Ray waits forever without a message.

    Raises:
        ResourceError: the cluster has fewer CPUs, or too few become free in time.

    """
    _wait_for("CPU", (count, count), option)


def _uses_gpus(device: str, workers: int, gpus: int, option: str) -> bool:
    """Return whether each worker gets a GPU; warn if GPUs stay unused because there are too few."""
    if device == "auto" and 0 < gpus < workers:
        logger.warning(
            "%d workers run on CPUs: the cluster has only %d GPUs: pass %s %d to use them",
            *(workers, gpus, option, gpus),
        )
    return device == "gpu" or (device == "auto" and gpus >= workers)


def _wait_for(resource: str, counts: tuple[int, int], option: str, and_rest: bool = False) -> int:
    """Wait until the minimum of CPUs or GPUs is free, and briefly for the maximum; return how many are free.

    counts: minimum and maximum. and_rest: wait briefly for all CPUs or GPUs of the cluster, not only for the maximum.
    """
    minimum, maximum = counts
    _scale_up(resource, minimum, maximum)
    total, start, is_logged = cluster_total(resource), time.monotonic(), False
    if total < minimum:
        raise ResourceError(
            f"{minimum} {resource}s needed, the cluster has {total}: {_remedy(resource, total, option)}"
        )
    maximum = total if and_rest else min(maximum, total)
    while (free := _free(resource)) < maximum:
        waited = time.monotonic() - start
        if free >= minimum and waited > _SETTLE_S:
            break
        if waited > _WAIT_S:
            raise ResourceError(
                f"{minimum} {resource}s needed, {free} of {total} are free after {_WAIT_S:.0f} s: "
                f"wait for the other job, or pass a lower {option}"
            )
        if not is_logged:
            logger.info("waiting for %d %ss, %d of %d are free", maximum, resource, free, total)
            is_logged = True
        time.sleep(0.5)
    return free


def _remedy(resource: str, total: int, option: str) -> str:
    remedies = [f"pass {option} {total}"] if total and option != "--runs-at-once" else []
    remedies += ["pass --device cpu"] if resource == "GPU" else []
    return ", or ".join([*remedies, "add nodes"])


def _scale_up(resource: str, minimum: int, maximum: int) -> None:
    """Request missing CPUs or GPUs from an autoscaler; wait for the minimum, and briefly for the maximum."""
    total, limit = cluster_total(resource), _autoscaler_limit(resource)
    if total >= maximum or limit <= total:
        return
    requested = min(maximum, limit)
    logger.info("requesting %d %ss from the autoscaler, the cluster has %d", requested, resource, total)
    request_resources(bundles=[{resource: 1}] * requested)
    start = last_logged = time.monotonic()
    try:
        while (total := cluster_total(resource)) < requested:
            now = time.monotonic()
            if now - start > _SCALE_S or (total >= minimum and now - start > _SETTLE_S):
                return
            if now - last_logged > _LOG_INTERVAL_S:
                last_logged = now
                logger.info("%d of %d %ss are available after %.0f s", total, requested, resource, now - start)
            time.sleep(0.5)
    finally:
        request_resources(bundles=[])  # running tasks keep their nodes


def _autoscaler_limit(resource: str) -> int:
    """Return the CPUs or GPUs that an autoscaler can extend the cluster to; 0 without an autoscaler."""
    limits = ray._private.state.state.get_max_resources_from_cluster_config()
    return min(int((limits or {}).get(resource, 0)), 1_000_000)


def _reachable(resource: str) -> int:
    return max(cluster_total(resource), _autoscaler_limit(resource))


def _cpus_without_gpu(free: int, workers: int) -> int:
    """CPUs of a worker without a GPU: an equal share of all; 1 beside another job, whose nodes are unknown."""
    nodes = [int(resources.get("CPU", 0)) for resources in _node_resources()]
    return cpus_per_worker(nodes, workers) if free >= cluster_total("CPU") else 1


def _cpus_per_gpu(workers: int) -> int:
    """CPUs of a worker with a GPU: the fewest per GPU of any node, limited to the free ones; at least 1."""
    nodes = [(int(node.get("CPU", 0)), int(node["GPU"])) for node in _node_resources() if node.get("GPU")]
    share = min((cpus // gpus for cpus, gpus in nodes), default=1)
    return max(1, min(share, _MAX_CPUS_PER_GPU, _free("CPU") // max(workers, 1)))


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _free(resource: str) -> int:
    return int(ray.available_resources().get(resource, 0))  # type: ignore[no-untyped-call]
