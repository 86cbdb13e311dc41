"""The one way into Ray: join or start a cluster, and ask whether it can place the work before the work begins."""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from lungseg.errors import ResourceError

logger = logging.getLogger(__name__)

# What these two warn of (a token is used; progress bars are off) is as it should be.
_CHATTY = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")
_ANSWER_S = 2.0  # a living Ray of this machine takes a connection in milliseconds
_WAIT_S = 60.0  # for CPUs that another job on the cluster is about to give back


@dataclass(frozen=True)
class Share:
    """What each worker gets."""

    workers: int
    cpus: int
    gpus: int


def connect() -> None:
    """Join the cluster that this job belongs to or RAY_ADDRESS names; else start one on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = _address()
    # A Ray of our own needs no dashboard, which takes a second and a tenth of a small machine.
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    # Workers' lines stay in Ray's logs: a pipeline says itself what a user wants to know.
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True, **own)
    except ConnectionError as error:
        where = os.environ.get("RAY_ADDRESS", "the address of this job")
        raise ResourceError(f"no Ray answers at {where}: start it, or set RAY_ADDRESS=local for one here") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Its errors come with tracebacks, and are raised besides.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logger.info("Ray %s: %d CPUs, %d GPUs", ray.__version__, _total("CPU"), _total("GPU"))


def _address() -> str | None:
    """Say `local` where there is no cluster to join, so that one is started; else let Ray join it.

    Ray writes down the last cluster that was started on this machine. A killed one cannot cross itself out, and Ray
    would knock at its door for minutes.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return named
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108
    if not note.is_file():
        return "local"
    host, _, port = note.read_text().strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            return None
    except (OSError, ValueError):
        return "local"


def share(workers: int, device: str) -> Share:
    """Divide the cluster among workers: a GPU and a CPU each, or equal parts of the CPUs; 0 workers: one a GPU or CPU.

    Raises:
        ResourceError: the cluster has not enough, or another job holds it.

    """
    cpus, gpus = _total("CPU"), _total("GPU")
    use_gpu = device == "gpu" or (device == "auto" and gpus >= max(workers, 1))
    count = workers or (gpus if use_gpu else cpus)
    if use_gpu and (gpus < count or count == 0):
        raise ResourceError(
            f"{max(count, 1)} GPUs asked, the cluster has {gpus}: pass --workers {gpus or 1} or --device cpu"
        )
    each = 1 if use_gpu else cpus_each(_node_cpus(), max(count, 1))
    require_cpus(max(count, 1) * each)
    return Share(count, each, int(use_gpu))


def cpus_each(nodes: Sequence[int], workers: int) -> int:
    """Most CPUs that each worker can have when no worker spans two nodes; 1 where not even that fits."""
    most = max([sum(nodes) // workers, 1])
    return next((each for each in range(most, 1, -1) if sum(cpus // each for cpus in nodes) >= workers), 1)


def require_cpus(count: int) -> None:
    """Wait until this many CPUs are free.

    Without this, Ray waits for ever and says nothing.

    Raises:
        ResourceError: the cluster has fewer, or they are not free in time.

    """
    total = _total("CPU")
    if total < count:
        raise ResourceError(f"{count} CPUs needed, the cluster has {total}: pass --workers {total or 1}, or add nodes")
    deadline = time.monotonic() + _WAIT_S
    told = False
    while (free := _free("CPU")) < count:
        if time.monotonic() > deadline:
            raise ResourceError(
                f"{count} CPUs needed, {free} of {total} are free after {_WAIT_S:.0f} s: "
                "wait for the other job, or pass fewer --workers"
            )
        if not told:
            logger.info("waiting for %d CPUs, %d of %d are free", count, free, total)
            told = True
        time.sleep(0.5)


def _total(resource: str) -> int:
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def _node_cpus() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _free(resource: str) -> int:
    return int(ray.available_resources().get(resource, 0))  # type: ignore[no-untyped-call]
