"""A node that loses its network for some time: hosts with their own addresses on one machine, one of them unplugged."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lungseg.config.command_line import parse
from lungseg.pipelines import prepare
from tests.cluster.nodes import start_job
from tests.cluster.test_nodes import films, prepare_arguments, tars  # noqa: F401  # a fixture
from tests.pipelines.processes import family, kill

NET = "10.231.77"
ROOT = Path(__file__).resolve().parents[2]
READY_S = 180.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True)


class Hosts:
    """A head on this machine and two nodes of one CPU, each in a network namespace that a bridge joins to it."""

    def __init__(self, folder: Path) -> None:
        self.mark = secrets.token_hex(2)
        self.bridge, self.names = f"lb{self.mark}", [f"ln{self.mark}{i}" for i in range(2)]
        self.temp = tempfile.mkdtemp(prefix="net-", dir="/tmp")
        self.log = folder / "ray.log"
        self.port = self._free_port()
        self.running: list[subprocess.Popen[bytes]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env = {
            **kept,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "WANDB_MODE": "disabled",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "6",
            # A cut connection is not closed: without these, calls through it wait for minutes.
            "RAY_grpc_client_keepalive_time_ms": "10000",
            "RAY_grpc_client_keepalive_timeout_ms": "10000",
        }

    @staticmethod
    def _free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def wire(self) -> str:
        """Create the hosts; return the error if the system refuses it, or an empty string."""
        steps = [
            ("link", "add", self.bridge, "type", "bridge"),
            ("addr", "add", f"{NET}.1/24", "dev", self.bridge),
            ("link", "set", self.bridge, "up"),
        ]
        for i, name in enumerate(self.names):
            steps += [
                ("netns", "add", name),
                ("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name),
                ("link", "set", name, "master", self.bridge),
                ("link", "set", name, "up"),
                ("-n", name, "addr", "add", f"{NET}.{i + 2}/24", "dev", "eth0"),
                ("-n", name, "link", "set", "eth0", "up"),
                ("-n", name, "link", "set", "lo", "up"),
            ]
        failed = [done.stderr.strip() for done in (ip(*step) for step in steps) if done.returncode]
        return failed[0] if failed else ""

    def start(self) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        common = ("--block", "--disable-usage-stats", "--dashboard-agent-listen-port", "0")
        head = ("--head", "--num-cpus", "0", "--port", str(self.port), "--node-ip-address", f"{NET}.1")
        self._run(ray, "start", *head, *common, "--include-dashboard", "false", "--temp-dir", self.temp)
        self._await(lambda: b"Ray runtime started" in self.log.read_bytes())
        for i, name in enumerate(self.names):
            node = ("--address", f"{NET}.1:{self.port}", "--node-ip-address", f"{NET}.{i + 2}", "--num-cpus", "1")
            self._run("ip", "netns", "exec", name, ray, "start", *node, *common)
            self._await(lambda count=i + 2: self.log.read_bytes().count(b"Ray runtime started") == count)

    def _run(self, *words: str) -> None:
        with self.log.open("ab") as log:
            self.running.append(subprocess.Popen(words, env=self.env, stdout=log, stderr=log, start_new_session=True))

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def cable(self, index: int, state: str) -> None:
        """Disconnect a node (`down`) or connect it again (`up`)."""
        done = ip("link", "set", self.names[index], state)
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        for process in reversed(self.running):
            kill(family(process))
            process.wait()
        for name in self.names:
            ip("netns", "del", name)
            ip("link", "del", name)
        ip("link", "del", self.bridge)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if not shutil.which("ip"):
        pytest.skip("no `ip` (Debian's iproute2) to make hosts of their own addresses with")
    network = Hosts(tmp_path)
    try:
        refused = network.wire()
        if refused:
            pytest.skip(f"hosts of their own addresses may not be made here: {refused}")
        network.start()
        yield network
    finally:
        network.close()


def test_node_that_was_cut_off_and_returns_changes_nothing(
    ray_cluster: None,
    hosts: Hosts,
    films: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    env = {**hosts.env, "RAY_ADDRESS": f"{NET}.1:{hosts.port}"}
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "cut"
    prepare.run(parse("prepare", prepare_arguments(films, undisturbed)))  # type: ignore[arg-type]
    assert len(tars(undisturbed)) == 16
    with start_job(env, out, "prepare.py", *prepare_arguments(films, out)) as job:
        job.wait_until(lambda: len(tars(out)) > 1)
        hosts.cable(1, "down")
        job.finish()
    assert tars(out) == tars(undisturbed)
    hosts.cable(1, "up")
    # The node ends when it learns that the cluster considers it dead; its tasks may write until then.
    with contextlib.suppress(subprocess.TimeoutExpired):
        hosts.running[-1].wait(timeout=10)
    assert tars(out) == tars(undisturbed)
    prepare.run(parse("prepare", ["archive", "--verify", "--out", str(out / "data")]))  # type: ignore[arg-type]
