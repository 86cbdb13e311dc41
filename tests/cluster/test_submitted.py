"""All jobs as `ray job submit` sends them to a head that asks for a token: what is uploaded, said, stopped, resumed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lungseg.imaging import phantom
from lungseg.model import checkpoint
from tests.cluster import commands
from tests.cluster.test_local_sh import Head
from tests.pipelines.processes import family, kill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="cluster/local.sh needs Linux"),
]

EPOCHS = 40  # so that the job is still at it when it is stopped
LAST = {
    "prepare": r"8 prepared in [\d.]+ s .*",
    "train": r"phantom-montgomery \+ phantom-shenzhen \(pooled\) .*",
    "infer": r"[\d:]+ 8 rows \(8 ok\) in .*/predictions; 8 predicted now, in [\d.]+ s",
    "report": r"[\d:]+ the numbers: .*/report/report\.json",
    "export": r"[\d:]+ 8 of 8 rows chosen; written to .*/export: 8 masks, 8 overlays, 8 coco",
}
# `ray job stop` with all that it needs to import done before: it stops the job at the moment that a file appears.
_STOP = """
import pathlib, sys, time
from ray.scripts.scripts import main
while not list(pathlib.Path(sys.argv[1]).glob("*/checkpoint/*/config.json")):
    time.sleep(0.02)
sys.argv = ["ray", "job", "stop", sys.argv[2]]
main()
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of two CPUs; its jobs have a home of their own."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "home").mkdir()
    one = Head(folder / "state")
    one.env |= {"WANDB_MODE": "disabled", "HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    try:
        started = one("start", "--cpus", "2")
        assert started.returncode == 0, started.stderr
        yield one
    finally:
        one("stop")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the code, and with data that would be ten times what Ray takes."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("jobs", "lungseg"):
        shutil.copytree(commands.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".rayignore"):
        shutil.copy(commands.ROOT / name, folder)
    (folder / "data").mkdir()
    with (folder / "data" / "films.bin").open("wb") as file:
        file.truncate(1 << 30)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs read and write; in `archive` are the pictures."""
    folder = tmp_path_factory.mktemp("place")
    phantom.write_archive(folder / "archive", 4, size=96)
    return folder


def submit(head: Head, work: Path, command: list[str], *options: str) -> tuple[int, str]:
    """Submit a command and follow it to its end: the status that `ray job submit` ends with, and all that it said."""
    words = [str(commands.ROOT / "cluster" / "local.sh"), "run", "ray", "job", "submit", "--working-dir", str(work)]
    process = subprocess.Popen(
        [*words, *options, "--", "python", *command],
        env=head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = process.communicate(timeout=280)[0]
        return process.returncode, said
    finally:
        kill(family(process))  # type: ignore[arg-type]
        process.wait()


def own_lines(said: str) -> list[str]:
    """Give the lines of the job itself, without those of `ray job submit` and Ray's own."""
    begin = said.index("Tailing logs until the job exits")
    theirs = re.compile(r"(\d{4}-\d\d-\d\d |Running entrypoint |-+$)")
    lines = [line.strip() for line in said[begin:].splitlines()[1:]]
    return [line for line in lines if line and not theirs.match(line)]


def test_all_jobs_with_a_gibibyte_that_stays_at_home(head: Head, work: Path, place: Path) -> None:
    uploads = 0
    for job, last in LAST.items():
        status, said = submit(head, work, commands.words(job, str(place), str(place / "archive")))
        assert status == 0, said
        assert "Traceback" not in said
        lines = own_lines(said)
        assert any(re.fullmatch(last, line) for line in lines[-3:]), f"{job}: {lines[-3:]}"
        uploads += said.count("Uploading package ")
    assert uploads == 1, "the same code is uploaded once"
    kept = Path(head.recorded("temp")).glob("**/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    (package,) = [path for path in kept if path.is_dir()]
    assert (package / "lungseg" / "data" / "shards.py").is_file()
    assert not (package / "data").exists()
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 20 << 20
    assert len(list((place / "export" / "masks").rglob("*.png"))) == 8


def test_the_token_is_in_no_file_log_or_record(head: Head, work: Path, place: Path) -> None:
    if not (place / "data").is_dir():
        assert submit(head, work, commands.words("prepare", str(place), str(place / "archive")))[0] == 0
    token = (head.state / "token").read_text()
    listed = head("run", "ray", "job", "list")
    assert "prepare.py" in listed.stdout + listed.stderr
    assert token not in listed.stdout + listed.stderr
    roots = (Path(head.recorded("temp")), place, work)
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and path.stat().st_size < 64 << 20]
    assert any("/logs/" in str(path) for path in files)
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_a_wrong_setting_is_one_line_in_the_logs(head: Head, work: Path, place: Path) -> None:
    status, said = submit(head, work, ["jobs/train.py", "demo", "--epochs", "0"])
    assert status != 0
    # Of a job that failed, `ray job submit` says the last lines of its log again.
    assert "greater than or equal to 1" in commands.complaint("\n".join(dict.fromkeys(own_lines(said))))


def test_without_the_token_nothing_is_taken(head: Head, work: Path, place: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    bare = ["env", "-u", "RAY_AUTH_TOKEN", "-u", "RAY_AUTH_MODE", f"HOME={tmp_path}"]
    refused = head("run", *bare, "ray", "job", "submit", "--working-dir", str(work), "--", "touch", str(marker))
    assert refused.returncode != 0
    assert "oken" in refused.stderr + refused.stdout
    assert not marker.exists()


def _trained(study: Path) -> tuple[str, list[dict[str, object]]]:
    (run,) = [path.parent for path in study.glob("*/run.json")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if name not in commands.TIMES} for line in lines]
    assert len(figures) == EPOCHS
    return checkpoint.find_all(str(run))[0].config["digests"]["model.safetensors"], figures


def test_a_stopped_job_that_is_submitted_again_goes_on(head: Head, work: Path, place: Path, tmp_path: Path) -> None:
    if not (place / "data").is_dir():
        assert submit(head, work, commands.words("prepare", str(place), str(place / "archive")))[0] == 0

    def train(out: Path) -> list[str]:
        return [*commands.words("train", str(place), ""), "--out", str(out), "--epochs", str(EPOCHS)]

    out, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [str(commands.ROOT / "cluster" / "local.sh"), "run", sys.executable, "-c", _STOP]
    (out / "one").mkdir(parents=True)
    stop = subprocess.Popen([*command, str(out / "one"), "to-be-stopped"], env=head.env, stdout=subprocess.DEVNULL)
    try:
        status, said = submit(head, work, train(out), "--submission-id", "to-be-stopped")
        assert stop.wait(timeout=60) == 0
    finally:
        kill(family(stop))
        stop.wait()
    assert status == 0, said  # so does Ray tell of a job that was stopped on purpose
    assert "Traceback" not in said, said
    assert "SIGTERM received" not in said, said
    assert "terminated: the same command goes on where this one stopped" in said
    told = head("run", "ray", "job", "status", "to-be-stopped")
    assert "Job 'to-be-stopped' was stopped" in told.stdout + told.stderr
    assert not list(out.glob("one/*/run.json")), "it ended before it was stopped"
    for folder in (out, whole):
        status, said = submit(head, work, train(folder))
        assert status == 0, said
        assert ("going on from its checkpoint" in said) == (folder == out)
    assert _trained(out / "one") == _trained(whole / "one")
