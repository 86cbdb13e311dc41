"""The one way into Ray: join the cluster that a job belongs to, or start one on this machine."""

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from lungseg.errors import ResourceError, SettingsError

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variable: how long Ray Train waits for a place for a run's workers before it tries anew, s."""

# What these two warn of (a token is used; progress bars are off) is as it should be.
_CHATTY = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")
_ANSWER_S = 2.0  # a living Ray of this machine takes a connection in milliseconds


def connect() -> None:
    """Join the cluster that this job belongs to or RAY_ADDRESS names; else start one on this machine.

    Raises:
        SettingsError: RAY_ADDRESS is no address of a cluster.
        ResourceError: no Ray answers there, or none can be started.

    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault(PLACEMENT_TIMEOUT_VARIABLE, "100")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = _address()
    own = _of_our_own() if address == "local" else {}
    on_term = signal.getsignal(signal.SIGTERM)
    # Workers' lines stay in Ray's logs: a pipeline says itself what a user wants to know.
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True, **own)
    except ConnectionError as error:
        where = os.environ.get("RAY_ADDRESS", "the address of this job")
        raise ResourceError(
            f"no Ray answers at {where}, or it refuses the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN): start it, give its "
            "token, or set RAY_ADDRESS=local for one here"
        ) from error
    except ValueError as error:
        raise SettingsError(
            f"RAY_ADDRESS={address}: no address of a cluster ({str(error).splitlines()[0]}): set HOST:PORT, or local"
        ) from error
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
    logger.info("Ray %s: %d CPUs, %d GPUs", ray.__version__, cluster_total("CPU"), cluster_total("GPU"))


def _of_our_own() -> dict[str, Any]:
    """Leave out what a Ray of our own does not need, with the options that say so.

    A dashboard takes a second and a tenth of a small machine; and nobody drains the node, for which Ray Train would
    watch with a process of 190 MiB a run. The C library gives each of a process's many threads memory of its own, which
    lets Ray's idle ones grow by a fifth in minutes.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    return {"include_dashboard": False}


def _address() -> str | None:
    """Say `local` where there is no cluster to join, so that one is started; else let Ray join it.

    Ray writes down the last cluster that was started on this machine. A killed one cannot cross itself out, and Ray
    would knock at its door for minutes.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and "://" in named:
        raise SettingsError(
            f"RAY_ADDRESS={named}: jobs run inside a cluster: send them there with `ray job submit`, or set "
            "RAY_ADDRESS to its HOST:PORT, or to local"
        )
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


def cluster_total(resource: str) -> int:
    """CPUs or GPUs of all nodes that are there."""
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]
