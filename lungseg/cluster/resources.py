"""How much of a cluster a job takes: read from its nodes, said, and checked before any work begins."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from lungseg.cluster.connection import cluster_total
from lungseg.errors import ResourceError

logger = logging.getLogger(__name__)

_WAIT_S = 60.0  # for CPUs that another job on the cluster is about to give back
_SETTLE_S = 10.0  # for more of them than are needed
_SCALE_S = 900.0  # for nodes that an autoscaler starts: a machine, an image of some GB, a driver
_TELL_S = 30.0
_MOST_CPUS = 16  # a worker with a GPU: more threads than that decode faster than a GPU trains
_PER_RUN = "--workers-per-run"


@dataclass(frozen=True)
class WorkerAllocation:
    """What each worker gets."""

    workers: int
    cpus: int
    gpus: int


def allocate_workers(workers: int | str, device: str) -> WorkerAllocation:
    """Divide the cluster among workers: a GPU and its CPUs each, or equal parts of the CPUs; auto: one a GPU or CPU.

    Raises:
        ResourceError: the cluster has not enough, or another job holds it.

    """
    wanted = 0 if workers == "auto" else int(workers)
    cpus, gpus = _most("CPU"), _most("GPU")
    use_gpu = _on_gpus(device, max(wanted, 1), gpus, "--workers")
    count = max(wanted or (gpus if use_gpu else cpus), 1)
    least = wanted or 1
    if use_gpu:
        count = min(count, _wait_for("GPU", (least, count), "--workers"))
        require_cpus(count)
        return WorkerAllocation(count, _cpus_a_gpu(count), 1)
    free = _wait_for("CPU", (least, count), "--workers", and_rest=True)
    count = min(count, free)
    return WorkerAllocation(count, _cpus_of(free, count), 0)


def allocate_runs(workers: int, device: str, runs: int, at_once: int | str) -> tuple[int, WorkerAllocation]:
    """Say how many of a study's runs, of so many workers each, train at once, and what each worker gets.

    at_once auto: as many as there is room for beside other jobs. A worker gets a GPU and its CPUs, or an equal part of
    the CPUs.

    Raises:
        ResourceError: the cluster has no room for one run, or not for `at_once`, or another job holds it.

    """
    asked = 0 if at_once == "auto" else int(at_once)
    cpus, gpus = _most("CPU"), _most("GPU")
    use_gpu = _on_gpus(device, workers, gpus, _PER_RUN)
    room = min(cpus, gpus) // workers if use_gpu else cpus // workers
    if room and asked > room and runs > room:
        raise ResourceError(
            f"--runs-at-once {asked} of {workers} workers each: the cluster has {cpus} CPUs and {gpus} GPUs, room "
            f"for {room}: pass --runs-at-once {room}, or add nodes"
        )
    count = min(runs, asked or max(room, 1))
    least, lower = (count * workers, "--runs-at-once") if asked and count > 1 else (workers, _PER_RUN)
    if use_gpu:
        count = min(count, _wait_for("GPU", (least, count * workers), lower) // workers)
    free = _wait_for("CPU", (least, count * workers), lower, and_rest=not use_gpu)
    count = min(count, free // workers)
    if use_gpu:
        return count, WorkerAllocation(workers, _cpus_a_gpu(count * workers), 1)
    return count, WorkerAllocation(workers, _cpus_of(free, count * workers), 0)


def workers_per_run(runs: int, device: str) -> int:
    """Say how many workers each of a study's runs can have when all train at once: its part of the GPUs, at least 1."""
    gpus = _most("GPU") if device != "cpu" else 0
    return max(1, gpus // max(runs, 1))


def initial_workers(least: int, planned: int, device: str) -> int:
    """Say with how many of its planned workers a run begins: with fewer, no less than `least`, on a small cluster."""
    there = _most("GPU") if device == "gpu" or (device == "auto" and _most("GPU") >= least) else _most("CPU")
    return max(least, min(planned, there))


def require_memory(placed: WorkerAllocation, workers: int, mib: int) -> None:
    """Say what each worker takes, and make sure that the nodes have the memory for all of them.

    mib: that a worker is known to need; its batches come on top, and depend on the network.

    Raises:
        ResourceError: they have not.

    """
    what = f"{placed.cpus} CPUs" + (" and a GPU" if placed.gpus else "")
    logger.info("%d workers, each %s and %d MiB beside its batches", workers, what, mib)
    nodes = _node_resources()
    places = [node.get("CPU", 0) // placed.cpus for node in nodes]
    rooms = [min(node.get("memory", 0.0) / 2**20 // mib, place) for node, place in zip(nodes, places, strict=True)]
    if sum(rooms) < workers <= sum(places):
        raise ResourceError(
            f"{workers} workers of {mib} MiB: the nodes' memory has room for {int(sum(rooms))}: lower "
            "--loader.cache-mib or the workers, or add memory"
        )


def cpus_per_worker(nodes: Sequence[int], workers: int) -> int:
    """Most CPUs that each worker can have when no worker spans two nodes; 1 where not even that fits."""
    most = max([sum(nodes) // workers, 1])
    return next((each for each in range(most, 1, -1) if sum(cpus // each for cpus in nodes) >= workers), 1)


def require_cpus(count: int, option: str = "--workers") -> None:
    """Wait until this many CPUs are free; `option` is the setting to lower where they are not there.

    Without this, Ray waits for ever and says nothing.

    Raises:
        ResourceError: the cluster has fewer, or they are not free in time.

    """
    _wait_for("CPU", (count, count), option)


def _on_gpus(device: str, workers: int, gpus: int, option: str) -> bool:
    """Say whether workers get a GPU each; where they get none although there are some, so that somebody hears of it."""
    if device == "auto" and 0 < gpus < workers:
        logger.warning(
            "%d workers on CPUs: the cluster has %d GPUs, not one for each: pass %s %d to use them",
            *(workers, gpus, option, gpus),
        )
    return device == "gpu" or (device == "auto" and gpus >= workers)


def _wait_for(resource: str, counts: tuple[int, int], option: str, and_rest: bool = False) -> int:
    """Wait until the least number of CPUs or GPUs is free, and a moment for the most; return how many are.

    and_rest: wait the moment for all that are there, beyond what an autoscaler is asked for.
    """
    least, most = counts
    _scale_up(resource, least, most)
    there, began, told = cluster_total(resource), time.monotonic(), False
    if there < least:
        raise ResourceError(f"{least} {resource}s needed, the cluster has {there}: {_remedy(resource, there, option)}")
    most = there if and_rest else min(most, there)
    while (free := _free(resource)) < most:
        waited = time.monotonic() - began
        if free >= least and waited > _SETTLE_S:
            break
        if waited > _WAIT_S:
            raise ResourceError(
                f"{least} {resource}s needed, {free} of {there} are free after {_WAIT_S:.0f} s: "
                f"wait for the other job, or pass fewer {option}"
            )
        if not told:
            logger.info("waiting for %d %ss, %d of %d are free", most, resource, free, there)
            told = True
        time.sleep(0.5)
    return free


def _remedy(resource: str, there: int, option: str) -> str:
    ways = [f"pass {option} {there}"] if there and option != "--runs-at-once" else []
    ways += ["pass --device cpu"] if resource == "GPU" else []
    return ", or ".join([*ways, "add nodes"])


def _scale_up(resource: str, least: int, most: int) -> None:
    """Ask an autoscaler for what is not there yet, and wait for the least of it; a moment for the rest."""
    there, promised = cluster_total(resource), _promised(resource)
    if there >= most or promised <= there:
        return
    wanted = min(most, promised)
    logger.info("asking the autoscaler for %d %ss, %d are there", wanted, resource, there)
    request_resources(bundles=[{resource: 1}] * wanted)
    began = told = time.monotonic()
    try:
        while (there := cluster_total(resource)) < wanted:
            now = time.monotonic()
            if now - began > _SCALE_S or (there >= least and now - began > _SETTLE_S):
                return
            if now - told > _TELL_S:
                told = now
                logger.info("%d of %d %ss are there after %.0f s", there, wanted, resource, now - began)
            time.sleep(0.5)
    finally:
        request_resources(bundles=[])  # what runs there holds its nodes


def _promised(resource: str) -> int:
    """CPUs or GPUs that an autoscaler could bring the cluster to; 0 where there is none."""
    found = ray._private.state.state.get_max_resources_from_cluster_config()
    return min(int((found or {}).get(resource, 0)), 1_000_000)


def _most(resource: str) -> int:
    return max(cluster_total(resource), _promised(resource))


def _cpus_of(free: int, workers: int) -> int:
    """CPUs for a worker without a GPU: an equal part of all; beside another job, whose nodes are not known, one."""
    return cpus_per_worker(_node_cpus(), workers) if free >= cluster_total("CPU") else 1


def _cpus_a_gpu(workers: int) -> int:
    """CPUs for a worker with a GPU: its part of the poorest node's, while so many are free; 1 at least."""
    nodes = [(int(found.get("CPU", 0)), int(found["GPU"])) for found in _node_resources() if found.get("GPU")]
    each = min((cpus // gpus for cpus, gpus in nodes), default=1)
    return max(1, min(each, _MOST_CPUS, _free("CPU") // max(workers, 1)))


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _node_cpus() -> list[int]:
    return [int(found.get("CPU", 0)) for found in _node_resources()]


def _free(resource: str) -> int:
    return int(ray.available_resources().get(resource, 0))  # type: ignore[no-untyped-call]
