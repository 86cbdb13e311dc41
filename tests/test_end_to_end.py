"""The main job as users run it: four commands, killed in the middle and started again."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lungseg.schema import SCHEMA
from lungseg.storage import read_table

ROOT = Path(__file__).resolve().parents[1]
TRAIN = (
    *("--protocols", "source-to-source", "--only-folds", "0", "--folds", "3", "--epochs", "4"),
    *("--model.encoder", "tu-mobilenetv3_small_100", "--model.weights", "none", "--loader.batch", "2"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def _start(job: str, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *args]
    environment = {**os.environ, "RAY_ADDRESS": "local", "WANDB_MODE": "disabled"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def _run(job: str, *args: str) -> str:
    process = _start(job, *args)
    said = process.communicate(timeout=280)[1].decode()
    assert process.returncode == 0, said
    return said


def _kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """SIGKILL a job and all of its Ray at the moment when `ready`: workers left to themselves go on for seconds."""
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()


def _archive(work: Path) -> Iterator[Path]:
    yield from (work / "data" / "phantoms").rglob("images/*.png")


def test_prepare_draws_and_shards_phantoms(work: Path) -> None:
    said = _run("prepare", "demo", "--phantoms", "8", "--preprocess.size", "64", "--out", str(work / "data"))
    assert "16 images in 2 data sets" in said
    infos = [json.loads(path.read_text()) for path in sorted(work.glob("data/*/dataset.json"))]
    assert [info["samples"] for info in infos] == [8, 8]


def test_train_killed_in_the_middle_goes_on(work: Path) -> None:
    command = ("train", "demo", "--data", str(work / "data"), "--out", str(work / "runs"), *TRAIN)
    runs = work / "runs" / "demo"

    def second_epoch() -> bool:
        return any(len(path.read_text().splitlines()) >= 2 for path in runs.glob("*/metrics.jsonl"))

    _kill_when(_start(*command), second_epoch)
    assert not list(runs.glob("*/run.json"))
    said = _run(*command)
    assert "going on from its checkpoint" in said
    assert len(list(runs.glob("*/run.json"))) == 2
    for run in runs.glob("*/run.json"):
        lines = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
        roles = {(tested["role"], tested["dataset"]) for tested in json.loads(run.read_text())["tested"]}
        assert len(roles) == 2
        assert {role for role, _ in roles} == {"held-out", "cross"}


def test_infer_killed_in_the_middle_goes_on(work: Path) -> None:
    run = next((work / "runs" / "demo").glob("from-phantom-shenzhen*"))
    out = work / "predictions"
    command = (
        *("infer", "demo", "--archive", str(work / "data" / "phantoms"), "--checkpoint", str(run)),
        *("--out", str(out), "--part", "1", "--batch", "1"),
    )
    _kill_when(_start(*command), lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    assert not (out / "predictions.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(kept) < 16
    _run(*command)
    rows = [row for path in sorted(out.glob("part-*.parquet")) for row in read_table(str(path)).to_pylist()]
    assert sorted(row["source_uri"] for row in rows) == sorted(str(path) for path in _archive(work))
    assert {row["status"] for row in rows} == {"ok"}
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_report_shows_both(work: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "report.py"), "demo"]
    paths = ["--study", str(work / "runs" / "demo"), "--predictions", str(work / "predictions")]
    shown = subprocess.run(
        [*command, *paths, "--out", str(work / "report")], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "cross" in shown.stdout
    assert "held-out" in shown.stdout
    page = (work / "report" / "report.html").read_text()
    assert "phantom-shenzhen" in page
    assert "data:image/" in page
    assert json.loads((work / "report" / "report.json").read_text())["schema"] == SCHEMA
