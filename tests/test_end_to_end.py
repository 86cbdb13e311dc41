"""The main job as users run it: four commands, each of which finds what the one before it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lungseg.schema import SCHEMA
from lungseg.storage import read_table

ROOT = Path(__file__).resolve().parents[1]
TRAIN = (
    *("--protocols", "source-to-source", "--train-on", "phantom-shenzhen", "--only-folds", "0", "--folds", "3"),
    *("--epochs", "4", "--model.encoder", "tu-test_efficientnet", "--model.weights", "none", "--loader.batch", "2"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def _run(job: str, *args: str) -> tuple[str, str]:
    """Run a job: what it prints, and what it says of its work."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "demo", *args]
    environment = {**os.environ, "RAY_ADDRESS": "local", "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_prepare_draws_and_shards_phantoms(work: Path) -> None:
    _, said = _run("prepare", "--phantoms", "8", "--preprocess.size", "64", "--out", str(work / "data"))
    assert "16 images in 2 data sets" in said
    infos = [json.loads(path.read_text()) for path in sorted(work.glob("data/*/dataset.json"))]
    assert [info["samples"] for info in infos] == [8, 8]


def test_train_learns_and_tests(work: Path) -> None:
    _run("train", "--data", str(work / "data"), "--out", str(work / "runs"), *TRAIN)
    (run,) = (work / "runs" / "demo").glob("*/run.json")
    lines = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    tested = {(one["role"], one["dataset"]) for one in json.loads(run.read_text())["tested"]}
    assert tested == {("held-out", "phantom-shenzhen"), ("cross", "phantom-montgomery")}


def test_infer_writes_a_row_an_image(work: Path) -> None:
    archive, out = work / "data" / "phantoms", work / "predictions"
    _run("infer", "--archive", str(archive), "--checkpoint", str(work / "runs" / "demo"), "--out", str(out))
    rows = [row for path in sorted(out.glob("part-*.parquet")) for row in read_table(str(path)).to_pylist()]
    assert sorted(row["source_uri"] for row in rows) == sorted(str(path) for path in archive.rglob("images/*.png"))
    assert {row["status"] for row in rows} == {"ok"}


def test_report_shows_both(work: Path) -> None:
    paths = ["--study", str(work / "runs" / "demo"), "--predictions", str(work / "predictions")]
    shown, _ = _run("report", *paths, "--out", str(work / "report"))
    assert "cross" in shown
    assert "held-out" in shown
    page = (work / "report" / "report.html").read_text()
    assert "phantom-shenzhen" in page
    assert "data:image/" in page
    assert json.loads((work / "report" / "report.json").read_text())["schema"] == SCHEMA
