"""The one way into Ray: join or start a cluster, and ask whether it can place the work before the work begins."""

import logging
import os
import signal
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

PLACE_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variable: how long Ray Train waits for a place for a run's workers before it tries anew, s."""

# What these two warn of (a token is used; progress bars are off) is as it should be.
_CHATTY = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")
_ANSWER_S = 2.0  # a living Ray of this machine takes a connection in milliseconds
_WAIT_S = 60.0  # for CPUs that another job on the cluster is about to give back
_SETTLE_S = 10.0  # for more of them than are needed
_PER_RUN = "--workers-per-run"


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
    os.environ.setdefault(PLACE_TIMEOUT, "100")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = _address()
    # A Ray of our own needs no dashboard, which takes a second and a tenth of a small machine.
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    on_term = signal.getsignal(signal.SIGTERM)
    # Workers' lines stay in Ray's logs: a pipeline says itself what a user wants to know.
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True, **own)
    except ConnectionError as error:
        where = os.environ.get("RAY_ADDRESS", "the address of this job")
        raise ResourceError(f"no Ray answers at {where}: start it, or set RAY_ADDRESS=local for one here") from error
    except Exception as error:
        if type(error) is not Exception:
            raise  # a bug; where its own processes are not up in 30 s, Ray raises the bare kind
        raise ResourceError(
            f"Ray did not start ({str(error).split('.')[0]}): the machine is too busy, or short of memory or disk; "
            "the same command tries again"
        ) from error
    if callable(on_term):
        signal.signal(signal.SIGTERM, on_term)  # Ray has put its own in its place, which ends with a bare status 15
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
    if use_gpu:
        _wait_for("GPU", (max(count, 1),) * 2, "--workers")
    each = 1 if use_gpu else cpus_each(_node_cpus(), max(count, 1))
    require_cpus(max(count, 1) * each)
    return Share(count, each, int(use_gpu))


def share_among_runs(workers: int, device: str, runs: int, at_once: int) -> tuple[int, Share]:
    """Say how many of a study's runs, of so many workers each, train at once, and what each worker gets.

    at_once 0: as many as there is room for beside other jobs. A worker gets a GPU and a CPU, or an equal part of the
    CPUs.

    Raises:
        ResourceError: the cluster has no room for one run, or not for `at_once`, or another job holds it.

    """
    cpus, gpus = _total("CPU"), _total("GPU")
    use_gpu = device == "gpu" or (device == "auto" and gpus >= workers)
    room = min(cpus, gpus) // workers if use_gpu else cpus // workers
    if room and at_once > room and runs > room:
        raise ResourceError(
            f"--runs-at-once {at_once} of {workers} workers each: the cluster has {cpus} CPUs and {gpus} GPUs, room "
            f"for {room}: pass --runs-at-once {room}, or add nodes"
        )
    count = min(runs, at_once or max(room, 1))
    least = count * workers if at_once else workers
    if use_gpu:
        count = min(count, _wait_for("GPU", (least, count * workers), _PER_RUN) // workers)
    free = _wait_for("CPU", (least, count * workers if use_gpu else cpus), _PER_RUN)
    count = min(count, free // workers)
    # Where another job holds some of the CPUs, which nodes those are on is not known: one each fits anywhere.
    each = cpus_each(_node_cpus(), count * workers) if free >= cpus and not use_gpu else 1
    return count, Share(workers, each, int(use_gpu))


def cpus_each(nodes: Sequence[int], workers: int) -> int:
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


def _wait_for(resource: str, counts: tuple[int, int], option: str) -> int:
    """Wait until the least number of CPUs or GPUs is free, and a moment for the most; return how many are."""
    least, most = counts
    total, began, told = _total(resource), time.monotonic(), False
    if total < least:
        other = " or --device cpu" if resource == "GPU" else ", or add nodes"
        raise ResourceError(f"{least} {resource}s needed, the cluster has {total}: pass {option} {total or 1}{other}")
    while (free := _free(resource)) < most:
        waited = time.monotonic() - began
        if free >= least and waited > _SETTLE_S:
            break
        if waited > _WAIT_S:
            raise ResourceError(
                f"{least} {resource}s needed, {free} of {total} are free after {_WAIT_S:.0f} s: "
                f"wait for the other job, or pass fewer {option}"
            )
        if not told:
            logger.info("waiting for %d %ss, %d of %d are free", most, resource, free, total)
            told = True
        time.sleep(0.5)
    return free


def _total(resource: str) -> int:
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def _node_cpus() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _free(resource: str) -> int:
    return int(ray.available_resources().get(resource, 0))  # type: ignore[no-untyped-call]
