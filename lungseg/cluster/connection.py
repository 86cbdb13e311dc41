"""Connect to Ray: join the cluster of a job, or start one on this machine."""

import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from lungseg.cluster.temporary_folder import choose_ray_folder, temporary_folder
from lungseg.errors import LungsegError, ResourceError, SettingsError, first_line
from lungseg.plurals import counted

logger = logging.getLogger(__name__)

PLACEMENT_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variable: seconds that Ray Train waits for the placement of a run's workers before it retries."""

# They warn about intended settings: a token is used, progress bars are off.
_NOISY_LOGGERS = ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress")
_LOG_LEVEL_VARIABLE = "RAY_BACKEND_LOG_LEVEL"
_CONNECT_TIMEOUT_S = 2.0  # a running Ray on this machine accepts a connection in milliseconds


def connect() -> None:
    """Join the cluster of this job or of RAY_ADDRESS; otherwise start one on this machine.

    Raises:
        SettingsError: RAY_ADDRESS is not a cluster address, or the temporary folder cannot be used.
        ResourceError: Ray does not answer, or cannot be started.

    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault(PLACEMENT_TIMEOUT_VARIABLE, "100")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = _address()
    local_options = _local_options() if address == "local" else {}
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    # Log lines of workers stay in the logs of Ray: the pipelines log what users need.
    options = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True, **local_options}
    try:
        with _without_log_level_line():
            ray.init(address=address, **options)
    except Exception as error:
        user_error = _user_error(error, address)
        if user_error is None:
            raise
        raise user_error from error
    if callable(sigterm_handler):
        signal.signal(signal.SIGTERM, sigterm_handler)  # Ray replaced it by one that exits with status 15
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It logs errors with tracebacks, and also raises them.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    devices = ", ".join(counted(cluster_total(resource), resource) for resource in ("CPU", "GPU"))
    logger.info("Ray %s: %s", ray.__version__, devices)


@contextlib.contextmanager
def _without_log_level_line() -> Iterator[None]:
    """Hide the line in which Ray repeats RAY_BACKEND_LOG_LEVEL, which no logger filters; delay all other lines."""
    if _LOG_LEVEL_VARIABLE not in os.environ:
        yield
        return
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            os.write(2, b"".join(line for line in captured if _LOG_LEVEL_VARIABLE.encode() not in line))


def _user_error(error: Exception, address: str | None) -> LungsegError | None:
    """Return the error for the user that an exception of `ray.init` means; None for a bug."""
    if isinstance(error, ConnectionError):
        return ResourceError(
            f"no Ray answers at {os.environ.get('RAY_ADDRESS', 'the address of this job')}, or it refuses the token "
            "(RAY_AUTH_MODE, RAY_AUTH_TOKEN): start the cluster, set its token, or set RAY_ADDRESS=local to use this "
            "machine"
        )
    if isinstance(error, ValueError) and address != "local":
        return SettingsError(
            f"RAY_ADDRESS={address}: not a cluster address ({first_line(error)}): set HOST:PORT, or local"
        )
    # Ray raises Exception itself if its processes do not start in 30 s, and OSError if it cannot write its files.
    if type(error) is Exception or isinstance(error, OSError):
        return ResourceError(
            f"Ray did not start ({str(error).split('.')[0]}): the machine is too busy, or short of memory or disk; "
            "run the same command again"
        )
    return None


def _local_options() -> dict[str, Any]:
    """Return the options of a Ray started for this job alone, without what it does not need.

    The dashboard takes a second to start and a tenth of a small machine. The preemption watcher of Ray Train takes 190
    MiB a run, and nobody drains this node. glibc gives each thread its own memory arena: without a limit, the idle
    processes of Ray grow by a fifth in minutes.
    """
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    return {"include_dashboard": False, "_temp_dir": choose_ray_folder()}


def _address() -> str | None:
    """Return RAY_ADDRESS, None to let Ray join a running cluster of this machine or job, or `local` to start one.

    Ray keeps the address of the last cluster of this machine in a file, even if that cluster was killed. Ray would try
    to connect to it for minutes, so its port is tested first.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise SettingsError(
            f"RAY_ADDRESS={address}: jobs run inside a cluster: submit them with `ray job submit`, or set RAY_ADDRESS "
            "to its HOST:PORT, or to local"
        )
    if address:
        return address
    address_file = Path(temporary_folder()) / "ray" / "ray_current_cluster"
    if not address_file.is_file():
        return "local"
    host, _, port = address_file.read_text().strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            return None
    except (OSError, ValueError):
        return "local"


def cluster_total(resource: str) -> int:
    """Number of CPUs or GPUs of all nodes that are alive."""
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]
