"""cluster/slurm.sbatch on two nodes that a stub of srun plays: one Ray, the job's status, no token told, no rest."""

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

# Like the real one it runs the command once a node, passes USR1 on, and kills the tasks on TERM.
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
    """A job of an allocation of two nodes, both on this machine."""

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
        self.says("RUNNING", 100)

    def says(self, state: str, left_s: int) -> None:
        """Let scontrol say of the job what state it is in and when its time ends."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + left_s))
        (self.stubs / "job").write_text(f"   JobState={state} Reason=None\n   EndTime={end} Deadline=N/A\n")

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        # A file, not a pipe: what the job leaves running would keep a pipe open.
        with (self.stubs / "log").open("w") as log:
            return subprocess.Popen(
                [SCRIPT, *command], env=self.env | env, stdout=log, stderr=log, text=True, start_new_session=True
            )

    @property
    def log(self) -> str:
        return (self.stubs / "log").read_text()

    @property
    def asked(self) -> str:
        """What scontrol was asked."""
        file = self.stubs / "scontrol.log"
        return file.read_text() if file.is_file() else ""

    def left(self) -> list[str]:
        """Processes that carry the job's number in their environment, and its folders."""
        mark, found = f"SLURM_JOB_ID={self.number}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended meanwhile
        return found + [str(path) for path in Path("/tmp").glob(f"lungseg-{self.number}-*")]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    # Its ports hang on the number, which no other test has at the same time.
    one = Slurm(tmp_path, 700_000_000 + os.getpid())
    yield one
    for folder in Path("/proc").glob("[0-9]*"):  # only where a test failed is there anything to end
        try:
            if f"SLURM_JOB_ID={one.number}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue
    for path in Path("/tmp").glob(f"lungseg-{one.number}-*"):
        shutil.rmtree(path)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


# One start serves several claims, for it takes ten seconds and more.
JOB = """
import os, pathlib, ray, sys
ray.init(log_to_driver=False)
assert sum(node["Alive"] for node in ray.nodes()) == 2, ray.nodes()
where = ray.remote(lambda: os.environ["SLURM_NODEID"])
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
asked = [where.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote() for node in ray.nodes()]
print("nodes", sorted(ray.get(asked)))
here = pathlib.Path(sys.argv[1])
(here / "token").write_text(os.environ["RAY_AUTH_TOKEN"])
paths = pathlib.Path("/tmp").glob(f"lungseg-{os.environ['SLURM_JOB_ID']}-*")
(here / "folders").write_text("\\n".join(f"{path.stat().st_mode & 0o777:o}" for path in paths))
lines = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
(here / "told").write_text(str(any(os.environ["RAY_AUTH_TOKEN"].encode() in line for line in lines)))
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
    assert (slurm.stubs / "told").read_text() == "False"
    assert (slurm.stubs / "folders").read_text() == "700\n700"
    assert not slurm.left()
    assert not slurm.asked, "a job that failed is not queued again"


# For these no Ray is needed: what plays it waits to be told.
def _without_ray(slurm: Slurm) -> None:
    for name, text in (("ray", "exec sleep 250"), ("python", "exit 0")):
        (slurm.stubs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (slurm.stubs / name).chmod(0o755)
    slurm.env["LUNGSEG_HEAD_IP"] = "127.0.0.1"
    slurm.env["SLURM_JOB_NUM_NODES"] = "1"


def test_job_at_its_time_limit_is_requeued(slurm: Slurm) -> None:
    _without_ray(slurm)
    here = slurm.stubs / "here"
    process = slurm.start("bash", "-c", f'touch "{here}"; exec sleep 250', SLURM_RESTART_COUNT="3")
    _wait_for(here, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert slurm.asked.splitlines()[-1] == f"requeue {slurm.number}"
    assert "queueing the job again" in slurm.log
    assert not slurm.left()


@pytest.mark.parametrize(
    ("state", "left_s", "restarts"),
    [("RUNNING", 7200, "0"), ("CANCELLED", 0, "0"), ("COMPLETING", 0, "0"), ("RUNNING", 60, "50")],
    ids=["long before its end", "cancelled", "ending", "queued too often"],
)
def test_other_ends_are_not_requeued(slurm: Slurm, state: str, left_s: int, restarts: str) -> None:
    _without_ray(slurm)
    slurm.says(state, left_s)
    here = slurm.stubs / "here"
    process = slurm.start("bash", "-c", f'touch "{here}"; exec sleep 250', SLURM_RESTART_COUNT=restarts)
    _wait_for(here, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert "requeue" not in slurm.asked
    assert not slurm.left()


def test_job_that_ends_well_on_sigterm_is_done(slurm: Slurm) -> None:
    _without_ray(slurm)
    here = slurm.stubs / "here"
    process = slurm.start("bash", "-c", f'trap "exit 0" TERM; touch "{here}"; while :; do sleep 0.1; done')
    _wait_for(here, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 0
    assert "requeue" not in slurm.asked


def test_end_of_ray_ends_the_job(slurm: Slurm) -> None:
    _without_ray(slurm)
    (slurm.stubs / "ray").write_text("#!/usr/bin/env bash\necho the port is taken\nexit 1\n")
    process = slurm.start("sleep", "250")
    assert process.wait(LIMIT_S) == 1
    assert "the port is taken" in slurm.log
    assert not slurm.left()


def test_ports_differ_per_job_and_avoid_ephemeral_ports() -> None:
    (rule,) = re.findall(r"^LUNGSEG_PORT=\$\(\((.+)\)\)$", SCRIPT.read_text(), re.MULTILINE)
    blocks = [eval(rule.replace("SLURM_JOB_ID", str(number))) for number in range(100_000, 100_500)]
    ports = {block + one for block in blocks for one in range(5)}
    assert len(ports) == 5 * len(blocks)
    assert min(ports) >= 20_000
    assert max(ports) < 32_768


@pytest.mark.parametrize(
    ("words", "env", "said"), [((), {}, "pass a command"), (("true",), {"SLURM_JOB_ID": ""}, "no Slurm job")]
)
def test_wrong_use_is_one_line(slurm: Slurm, words: tuple[str, ...], env: dict[str, str], said: str) -> None:
    process = slurm.start(*words, **env)
    assert process.wait(LIMIT_S) == 2
    assert said in slurm.log
    assert slurm.log.count("\n") == 1


def test_script_requests_what_it_relies_on() -> None:
    lines = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120", "--ntasks-per-node=1"} <= set(lines)
    assert "ray stop" not in SCRIPT.read_text()
