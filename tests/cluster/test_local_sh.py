"""cluster/local.sh starts and stops one Ray, requires its token, and kills only its own processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "local.sh"
READY_S = 180.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cluster/local.sh needs Linux")


class Head:
    """Runs the script with its own state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        # Ray's variables could lead a command to another Ray.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env = kept | {"LUNGSEG_RAY_STATE": str(state)}

    def __call__(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *words], env=self.env | (env or {}), capture_output=True, text=True, check=False, timeout=150
        )

    def submit(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Submit a job. Retry while no agent is available, which can happen just after the start."""
        deadline = time.monotonic() + READY_S
        while True:
            done = self("run", "ray", "job", "submit", "--working-dir", str(folder), *words)
            if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1.0)

    def recorded(self, name: str) -> str:
        pairs = (line.split("=", 1) for line in (self.state / "head").read_text().splitlines())
        return dict(tuple(pair) for pair in pairs)[name]  # type: ignore[arg-type]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    script = Head(tmp_path / "state")
    try:
        yield script
    finally:
        script("stop")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """An unrelated process group whose command line contains ray."""
    words = [sys.executable, "-c", "import time; time.sleep(280)", "ray", "start", "--head", "raylet"]
    process = subprocess.Popen(words, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _working_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "jobs").mkdir(parents=True)
    job = folder / "jobs" / "answer.py"
    job.write_text("#!/usr/bin/env python3\nimport sys\nprint('ran by', sys.executable)\n")
    job.chmod(0o755)
    return folder


def _has_ended(pid: int) -> bool:
    """Return whether no process with this id runs; a zombie counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def test_help_lists_every_subcommand(head: Head) -> None:
    done = head("--help")
    assert done.returncode == 0
    assert all(f"cluster/local.sh {word}" in done.stdout for word in ("start", "run", "env", "status", "stop"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "pass start"),
        (("restart",), "unknown subcommand 'restart'"),
        (("start", "--gpus", "1"), "has no option '--gpus'"),
        (("start", "--cpus", "none"), "--cpus takes a number"),
        (("start", "--port", "65536"), "--port takes a number"),
        (("stop", "now"), "stop takes no arguments"),
        (("env",), "Ray is not running"),
        (("run",), "run needs a command"),
        (("run", "true"), "Ray is not running"),
    ],
)
def test_wrong_arguments_give_a_one_line_error(head: Head, words: tuple[str, ...], message: str) -> None:
    done = head(*words)
    assert done.returncode not in (0, 3)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_status_without_a_head_reports_stopped(head: Head) -> None:
    assert head("status").returncode == 3
    assert head("stop").returncode == 0


def assert_kills_nothing(head: Head, bystander: subprocess.Popen[bytes], message: str) -> None:
    # `status` first, because it sends no signal. If the script trusted the record, `stop` would kill this test too.
    status = head("status")
    assert status.returncode == 3
    assert message in status.stderr
    assert head("stop").returncode == 0
    assert bystander.poll() is None
    assert "Ray is stopped" in head("status").stderr


def test_record_with_a_reused_process_id_kills_nothing(head: Head, bystander: subprocess.Popen[bytes]) -> None:
    head.state.mkdir()
    # The process id now belongs to another process.
    (head.state / "head").write_text(
        f"pgid={bystander.pid}\nborn=1\ntemp=/tmp/lungseg-none\ngcs=1\ndashboard=1\nlog=x\n"
    )
    assert_kills_nothing(head, bystander, "without cluster/local.sh stop")


@pytest.mark.parametrize(
    "record", ["pgid={pid}\nborn=1\n", "pgid={pid}\nborn=1\ntemp=/tmp\ngcs=1\ndashboard=1\n", "kill {pid}\n", ""]
)
def test_damaged_record_kills_nothing(head: Head, bystander: subprocess.Popen[bytes], record: str) -> None:
    head.state.mkdir()
    (head.state / "head").write_text(record.format(pid=bystander.pid))
    assert_kills_nothing(head, bystander, "is damaged")


def test_port_in_use_is_reported_before_the_start(head: Head) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = head("start", "--dashboard-port", str(other.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (head.state / "head").exists()


@pytest.mark.slow
def test_start_submit_crash_restart_and_stop(head: Head, bystander: subprocess.Popen[bytes], tmp_path: Path) -> None:
    work = _working_dir(tmp_path)
    started = head("start", "--cpus", "1")
    assert started.returncode == 0, started.stderr
    first = int(head.recorded("pgid"))
    assert (head.state / "token").stat().st_mode & 0o777 == 0o600
    assert Path(head.recorded("temp")).stat().st_mode & 0o777 == 0o700
    assert head("status").returncode == 0
    jobs = head("run", "ray", "job", "list")
    assert "[]" in jobs.stdout + jobs.stderr  # the start leaves no job
    again = head("start")
    assert (again.returncode, int(head.recorded("pgid"))) == (0, first)
    assert "Ray is running already" in again.stderr

    answer = head.submit(work, "--", "python", "-c", "print(6*7)")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "\n42\n" in answer.stdout
    assert "succeeded" in answer.stdout + answer.stderr
    literal = head.submit(work, "jobs/answer.py")
    assert literal.returncode == 0, literal.stdout + literal.stderr
    assert "ran by" in literal.stdout

    lines = head("env").stdout
    listed = subprocess.run(
        ["bash", "-c", 'eval "$1" && ray job list', "bash", lines],
        env=head.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert "SUCCEEDED" in listed.stdout
    refused = head("run", "env", "-u", "RAY_AUTH_TOKEN", "HOME=" + str(tmp_path), "ray", "job", "list")
    assert refused.returncode != 0
    assert "oken" in refused.stderr + refused.stdout

    # After the head is killed, status reports it, and the next start ends the job that the head left running.
    marker = work / "pid"
    (work / "jobs" / "wait.py").write_text(
        "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(250)\n"
    )
    assert head.submit(work, "--no-wait", "--", "python", "jobs/wait.py", str(marker)).returncode == 0
    deadline = time.monotonic() + READY_S
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    orphan = int(marker.read_text())
    os.killpg(first, signal.SIGKILL)
    while not _has_ended(first) and time.monotonic() < deadline:  # a killed process needs a moment to end
        time.sleep(0.1)
    assert head("status").returncode == 3
    restarted = head("start", "--cpus", "1")
    assert restarted.returncode == 0, restarted.stderr
    assert "cleaning up" in restarted.stderr
    assert _has_ended(orphan)

    second, temp = int(head.recorded("pgid")), Path(head.recorded("temp"))
    stopped = head("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert _has_ended(second)
    assert not temp.exists()
    status = head("status")
    assert (status.returncode, status.stderr) == (3, "Ray is stopped\n")
    assert bystander.poll() is None
