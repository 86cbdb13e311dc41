"""Several Ray nodes on this machine, and jobs on them in separate processes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.pipelines.processes import family, kill

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 200.0


class Nodes:
    """A Ray head without CPUs, and nodes with one CPU each."""

    def __init__(self) -> None:
        self._temp = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # short: the path of a socket has a limit
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": self._temp}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers: list[Any] = []

    @property
    def count(self) -> int:
        """Return the number of nodes, without the head."""
        return len(self.workers)

    def resize(self, count: int) -> None:
        """Start or stop nodes until `count` of them run."""
        while self.count > count:
            self.cluster.remove_node(self.workers.pop())
        while self.count < count:
            self.workers.append(self.cluster.add_node(num_cpus=1))

    def kill(self, index: int) -> None:
        """Kill a node and all its processes at once, as if the machine was lost."""
        self.cluster.remove_node(self.workers.pop(index), allow_graceful=False)

    def processes(self, index: int) -> list[psutil.Process]:
        """List a node's processes: the children of its raylet."""
        raylet = self.workers[index].all_processes["raylet"][0].process
        return family(raylet)[1:]

    def job(self, out: Path, *words: str) -> AbstractContextManager["RunningJob"]:
        """Run a job of the project on the nodes."""
        return start_job({**os.environ, "RAY_ADDRESS": self.cluster.address, "WANDB_MODE": "disabled"}, out, *words)

    def close(self) -> None:
        self.cluster.shutdown()
        shutil.rmtree(self._temp, ignore_errors=True)


@contextmanager
def start_job(environment: dict[str, str], out: Path, *words: str) -> Iterator["RunningJob"]:
    """Run a job of the project in its own session, and end all its processes."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / words[0]), *words[1:]],
            env={
                **environment,
                "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
                "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield RunningJob(process, out)
    finally:
        kill(family(process))
        process.wait()


class RunningJob:
    """A running job."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self._process, self._out = process, out

    @property
    def log(self) -> str:
        return (self._out / "job.log").read_text()

    def wait_until(self, ready: Callable[[], Any]) -> float:
        """Wait until `ready` returns true; return the seconds. Fail if the job ends first."""
        began = time.monotonic()
        while not ready():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < began + WAIT_S, self.log
            time.sleep(0.05)
        return time.monotonic() - began

    def finish(self) -> str:
        """Wait until the job ends with status 0; return its log."""
        assert self._process.wait(timeout=WAIT_S) == 0, self.log
        return self.log
