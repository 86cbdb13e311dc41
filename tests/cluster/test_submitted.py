"""All jobs sent by `ray job submit` to a head that requires a token: upload, output, stop, and the same job again."""

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
    pytest.mark.timeout(900),  # the first test waits for all jobs
    pytest.mark.skipif(sys.platform != "linux", reason="cluster/local.sh needs Linux"),
]

EPOCHS = 16  # so that training has not ended when it is stopped
STOPPED = "to-be-stopped"
LAST = {
    "prepare": r"[\d:]+ next: lungseg train small --data .*",
    "train": r"[\d:]+ next: lungseg infer archive --archive FOLDER --checkpoint .*",
    "infer": r"[\d:]+ next: lungseg export archive --predictions .*/predictions --formats overlays .*--out .*",
    "report": r"[\d:]+ wrote .*/report/report\.html and .*/report/report\.json",
    "export": r"[\d:]+ 8 of 8 rows selected; written to .*/export: 8 masks, 8 overlays, 8 coco",
}
# `ray job stop`, which imports everything first: so it stops the job at the moment that a checkpoint appears.
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
    """A head of two CPUs whose jobs have their own home folder."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "home").mkdir()
    node = Head(folder / "state")
    node.env |= {"WANDB_MODE": "disabled", "HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    try:
        started = node("start", "--cpus", "2")
        assert started.returncode == 0, started.stderr
        yield node
    finally:
        node("stop")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the code, and with data of ten times the size that Ray accepts."""
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
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the jobs read and write; `archive` holds the images."""
    folder = tmp_path_factory.mktemp("submitted")
    phantom.write_archive(folder / "archive", 4, size=96)
    return folder


def submit(head: Head, work: Path, command: list[str], *options: str) -> tuple[int, str]:
    """Submit a command and wait for its end: the status of `ray job submit` and its output."""
    words = [str(commands.ROOT / "cluster" / "local.sh"), "run", "ray", "job", "submit", "--working-dir", str(work)]
    process = subprocess.Popen(
        [*words, *options, "--", "python", *command],
        env=head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = process.communicate(timeout=280)[0]
        return process.returncode, output
    finally:
        kill(family(process))  # type: ignore[arg-type]
        process.wait()


def own_lines(output: str) -> list[str]:
    """Return the lines of the job itself, without those of `ray job submit` and Ray."""
    begin = output.index("Tailing logs until the job exits")
    foreign = re.compile(r"(\d{4}-\d\d-\d\d |Running entrypoint |-+$)")
    lines = [line.strip() for line in output[begin:].splitlines()[1:]]
    return [line for line in lines if line and not foreign.match(line)]


def submit_and_stop(head: Head, work: Path, command: list[str], study: Path) -> str:
    """Submit a training and stop it at its first checkpoint; return its output."""
    study.mkdir(parents=True)
    words = [str(commands.ROOT / "cluster" / "local.sh"), "run", sys.executable, "-c", _STOP, str(study), STOPPED]
    stop = subprocess.Popen(words, env=head.env, stdout=subprocess.DEVNULL)
    try:
        status, output = submit(head, work, command, "--submission-id", STOPPED)
        assert stop.wait(timeout=60) == 0
    finally:
        kill(family(stop))
        stop.wait()
    assert status == 0, output  # Ray's status of a job that was stopped on purpose
    assert not list(study.glob("*/run.json")), "training ended before it was stopped"
    return output


@pytest.fixture(scope="module")
def outputs(head: Head, work: Path, root: Path) -> dict[str, str]:
    """Outputs of all jobs, one after another. Training is stopped once: `stopped` is the output until then."""
    outputs: dict[str, str] = {}
    for job in commands.JOBS:
        epochs = ["--epochs", str(EPOCHS)] if job == "train" else []
        command = commands.words(job, str(root), str(root / "archive"), *epochs)
        if job == "train":
            outputs["stopped"] = submit_and_stop(head, work, command, root / "runs" / "one")
        status, outputs[job] = submit(head, work, command)
        assert status == 0, outputs[job]
    return outputs


def test_every_job_ends_with_its_result(outputs: dict[str, str], root: Path) -> None:
    for job, last in LAST.items():
        assert "Traceback" not in outputs[job]
        lines = own_lines(outputs[job])
        assert any(re.fullmatch(last, line) for line in lines[-3:]), f"{job}: {lines[-3:]}"
    assert len(list((root / "export" / "masks").rglob("*.png"))) == 8


def test_code_is_uploaded_once_and_without_data(outputs: dict[str, str], head: Head) -> None:
    assert sum(output.count("Uploading package ") for output in outputs.values()) == 1
    kept = Path(head.recorded("temp")).glob("**/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    (package,) = [path for path in kept if path.is_dir()]
    assert (package / "lungseg" / "dataset" / "catalog.py").is_file()
    assert not (package / "data").exists()
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 20 << 20


def test_stopped_job_continues_when_submitted_again(
    ray_cluster: None, outputs: dict[str, str], head: Head, root: Path, tmp_path: Path
) -> None:
    assert "Traceback" not in outputs["stopped"]
    assert "SIGTERM received" not in outputs["stopped"]
    assert "terminated: the same command continues where this one stopped" in outputs["stopped"]
    answer = head("run", "ray", "job", "status", STOPPED)
    assert f"Job '{STOPPED}' was stopped" in answer.stdout + answer.stderr
    assert "resuming from its checkpoint" in outputs["train"]
    commands.run("train", root, "--out", str(tmp_path), "--epochs", str(EPOCHS))
    assert _trained(root / "runs" / "one") == _trained(tmp_path / "one")


def _trained(study: Path) -> tuple[str, list[dict[str, object]]]:
    """Return the digest of a study's only model, and its metrics without times."""
    (run,) = [path.parent for path in study.glob("*/run.json")]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in commands.TIMES} for line in lines]
    assert len(metrics) == EPOCHS
    return checkpoint.find_all(str(run))[0].config["digests"]["model.safetensors"], metrics


def test_token_is_in_no_file_log_or_record(outputs: dict[str, str], head: Head, work: Path, root: Path) -> None:
    token = (head.state / "token").read_text()
    listed = head("run", "ray", "job", "list")
    assert "prepare.py" in listed.stdout + listed.stderr
    assert token not in listed.stdout + listed.stderr
    assert not [job for job, output in outputs.items() if token in output]
    folders = (Path(head.recorded("temp")), root, work)
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in paths if path.stat().st_size < 64 << 20]
    assert any("/logs/" in str(path) for path in files)
    assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_wrong_setting_is_one_line_of_the_log(head: Head, work: Path) -> None:
    status, output = submit(head, work, ["jobs/train.py", "demo", "--epochs", "0"])
    assert status != 0
    # `ray job submit` repeats the last lines of the log of a job that failed.
    assert "greater than or equal to 1" in commands.error_line("\n".join(dict.fromkeys(own_lines(output))))


def test_job_without_the_token_is_refused(head: Head, work: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    bare = ["env", "-u", "RAY_AUTH_TOKEN", "-u", "RAY_AUTH_MODE", f"HOME={tmp_path}"]
    refused = head("run", *bare, "ray", "job", "submit", "--working-dir", str(work), "--", "touch", str(marker))
    assert refused.returncode != 0
    assert "oken" in refused.stderr + refused.stdout
    assert not marker.exists()
