"""cluster/slurm.sbatch with a stub of srun for two nodes: start, exit status, requeue, no leaked token, cleanup."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
LIMIT_S = 120.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cluster/slurm.sbatch needs Linux")

# Like the real srun, it runs the command once per node, forwards USR1, and kills the tasks on TERM.
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$STUBS/srun.log"
while [[ $1 == --* ]]; do
    case $1 in --nodes=*) nodes=${1#*=} ;; esac
    shift
done
tasks=()
for ((i = 0; i < nodes; i++)); do SLURM_NODEID=$i "$@" & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -KILL "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do while kill -0 "$task" 2>/dev/null; do wait "$task"; done; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >>"$STUBS/scontrol.log"
[[ $1 == show ]] && cat "$STUBS/job"
exit 0
"""


class Slurm:
    """A Slurm job with two nodes, both on this machine."""

    def __init__(self, stubs: Path, number: int) -> None:
        self.stubs, self.number = stubs, number
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        path = f"{stubs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = kept | {
            "PATH": path,
            "STUBS": str(stubs),
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_MEM_PER_NODE": "1000",
            "SLURM_SUBMIT_DIR": str(stubs),
        }
        self.set_state("RUNNING", 100)

    def set_state(self, state: str, left_s: int) -> None:
        """Set the state and the remaining time that scontrol reports for the job."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + left_s))
        (self.stubs / "job").write_text(f"   JobState={state} Reason=None\n   EndTime={end} Deadline=N/A\n")

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        # A file, because a process that outlives the job would keep a pipe open.
        with (self.stubs / "log").open("w") as log:
            return subprocess.Popen(
                [SCRIPT, *command], env=self.env | env, stdout=log, stderr=log, text=True, start_new_session=True
            )

    @property
    def log(self) -> str:
        return (self.stubs / "log").read_text()

    @property
    def scontrol_calls(self) -> str:
        """Arguments of all scontrol calls."""
        path = self.stubs / "scontrol.log"
        return path.read_text() if path.is_file() else ""

    def leftovers(self) -> list[str]:
        """Return processes with the job's number in their environment, and the job's folders."""
        mark, commands = f"SLURM_JOB_ID={self.number}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    commands.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended meanwhile
        return commands + [str(path) for path in Path("/tmp").glob(f"lungseg-{self.number}-*")]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    # The ports are derived from the number, so it must be unique among running tests.
    job = Slurm(tmp_path, 700_000_000 + os.getpid())
    yield job
    for folder in Path("/proc").glob("[0-9]*"):  # processes remain only if a test failed
        try:
            if f"SLURM_JOB_ID={job.number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    for path in Path("/tmp").glob(f"lungseg-{job.number}-*"):
        shutil.rmtree(path)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


# One start tests several properties, because it takes ten seconds or more.
JOB = """
import os, pathlib, ray, sys
ray.init(log_to_driver=False)
assert sum(node["Alive"] for node in ray.nodes()) == 2, ray.nodes()
node_id = ray.remote(lambda: os.environ["SLURM_NODEID"])
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
tasks = [node_id.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote() for node in ray.nodes()]
print("nodes", sorted(ray.get(tasks)))
results = pathlib.Path(sys.argv[1])
(results / "token").write_text(os.environ["RAY_AUTH_TOKEN"])
paths = pathlib.Path("/tmp").glob(f"lungseg-{os.environ['SLURM_JOB_ID']}-*")
(results / "folders").write_text("\\n".join(f"{path.stat().st_mode & 0o777:o}" for path in paths))
lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
(results / "leaked").write_text(str(any(os.environ["RAY_AUTH_TOKEN"].encode() in line for line in lines)))
sys.exit(7)
"""


@pytest.mark.slow
def test_one_ray_on_both_nodes_leaves_nothing_behind(slurm: Slurm) -> None:
    process = slurm.start("python", "-c", JOB, str(slurm.stubs))
    assert process.wait(LIMIT_S) == 7, slurm.log
    assert "nodes ['0', '1']" in slurm.log
    token = (slurm.stubs / "token").read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert token not in slurm.log
    assert token not in (slurm.stubs / "srun.log").read_text()
    assert (slurm.stubs / "leaked").read_text() == "False"
    assert (slurm.stubs / "folders").read_text() == "700\n700"
    assert not slurm.leftovers()
    assert not slurm.scontrol_calls, "a job that failed is not queued again"


# These tests need no Ray: a stub waits for a signal.
def _without_ray(slurm: Slurm) -> None:
    for name, text in (("ray", "exec sleep 250"), ("python", "exit 0")):
        (slurm.stubs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (slurm.stubs / name).chmod(0o755)
    slurm.env["LUNGSEG_HEAD_IP"] = "127.0.0.1"
    slurm.env["SLURM_JOB_NUM_NODES"] = "1"


def test_job_at_its_time_limit_is_requeued(slurm: Slurm) -> None:
    _without_ray(slurm)
    started = slurm.stubs / "started"
    process = slurm.start("bash", "-c", f'touch "{started}"; exec sleep 250', SLURM_RESTART_COUNT="3")
    _wait_for(started, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert slurm.scontrol_calls.splitlines()[-1] == f"requeue {slurm.number}"
    assert "queueing the job again" in slurm.log
    assert not slurm.leftovers()


@pytest.mark.parametrize(
    ("state", "left_s", "restarts"),
    [("RUNNING", 7200, "0"), ("CANCELLED", 0, "0"), ("COMPLETING", 0, "0"), ("RUNNING", 60, "50")],
    ids=["long before the limit", "cancelled", "completing", "too many restarts"],
)
def test_job_ended_for_another_reason_is_not_requeued(slurm: Slurm, state: str, left_s: int, restarts: str) -> None:
    _without_ray(slurm)
    slurm.set_state(state, left_s)
    started = slurm.stubs / "started"
    process = slurm.start("bash", "-c", f'touch "{started}"; exec sleep 250', SLURM_RESTART_COUNT=restarts)
    _wait_for(started, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert "requeue" not in slurm.scontrol_calls
    assert not slurm.leftovers()


def test_job_that_succeeds_on_sigterm_is_not_requeued(slurm: Slurm) -> None:
    _without_ray(slurm)
    started = slurm.stubs / "started"
    process = slurm.start("bash", "-c", f'trap "exit 0" TERM; touch "{started}"; while :; do sleep 0.1; done')
    _wait_for(started, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert "requeue" not in slurm.scontrol_calls


@pytest.mark.parametrize("delay_s", [0, 2], ids=["later", "before the command has its session"])
def test_job_fails_when_ray_exits(slurm: Slurm, delay_s: int) -> None:
    _without_ray(slurm)
    real = shutil.which("setsid")
    waits = f"[[ $1 == sleep ]] && read -rt {delay_s} <> <(:)"  # without a process that would be left over
    (slurm.stubs / "setsid").write_text(f'#!/usr/bin/env bash\n{waits}\nexec {real} "$@"\n')
    (slurm.stubs / "setsid").chmod(0o755)
    (slurm.stubs / "ray").write_text("#!/usr/bin/env bash\necho the port is taken\nexit 1\n")
    process = slurm.start("sleep", "250")
    assert process.wait(LIMIT_S) == 1
    assert "the port is taken" in slurm.log
    assert not slurm.leftovers()


def test_ports_differ_per_job_and_avoid_ephemeral_ports() -> None:
    (rule,) = re.findall(r"^LUNGSEG_PORT=\$\(\((.+)\)\)$", SCRIPT.read_text(), re.MULTILINE)
    blocks = [eval(rule.replace("SLURM_JOB_ID", str(number))) for number in range(100_000, 100_500)]
    ports = {block + offset for block in blocks for offset in range(5)}
    assert len(ports) == 5 * len(blocks)
    assert min(ports) >= 20_000
    assert max(ports) < 32_768


@pytest.mark.parametrize(
    ("words", "env", "message"), [((), {}, "pass a command"), (("true",), {"SLURM_JOB_ID": ""}, "not a Slurm job")]
)
def test_wrong_arguments_give_a_one_line_error(
    slurm: Slurm, words: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    process = slurm.start(*words, **env)
    assert process.wait(LIMIT_S) == 2
    assert message in slurm.log
    assert slurm.log.count("\n") == 1


def test_script_sets_the_sbatch_options_it_needs() -> None:
    lines = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120", "--ntasks-per-node=1"} <= set(lines)
    assert "ray stop" not in SCRIPT.read_text()
