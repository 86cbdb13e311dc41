"""The main workflow: four commands, each of which reads the output of the previous one."""

import json
from pathlib import Path

import pytest

from lungseg import cli
from lungseg.config.recipes import Job
from lungseg.schema import SCHEMA
from lungseg.storage import read_table

pytestmark = pytest.mark.usefixtures("ray_cluster")

TRAIN = (
    *("--protocols", "source-to-source", "--train-on", "phantom-shenzhen", "--only-folds", "0", "--folds", "3"),
    *("--epochs", "2", "--model.encoder", "tu-test_efficientnet", "--model.weights", "none"),
    *("--loader.batch-size", "2", "--workers-per-run", "2"),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def _run(job: Job, *args: str) -> None:
    assert cli.main(job, ["demo", *args]) == 0


def test_prepare_draws_and_shards_phantoms(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("prepare", "--phantoms", "8", "--preprocess.size", "64", "--out", str(work / "data"))
    assert "16 images, 2 datasets" in capsys.readouterr().err
    infos = [json.loads(path.read_text()) for path in sorted(work.glob("data/*/dataset.json"))]
    assert [info["samples"] for info in infos] == [8, 8]


def test_two_workers_test_each_other_image_once(work: Path) -> None:
    command = ("--data", str(work / "data"), "--out", str(work / "runs"), *TRAIN)
    _run("train", *command)
    (run,) = (path.parent for path in (work / "runs" / "demo").glob("*/run.json"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    tested = {(result["role"], result["dataset"]) for result in json.loads((run / "run.json").read_text())["tested"]}
    assert tested == {("held-out", "phantom-shenzhen"), ("cross", "phantom-montgomery")}
    tables = [run / "tested.parquet", next(run.glob("checkpoint/epoch-*/trained_on.parquet"))]
    rows = [row for path in tables for row in read_table(str(path)).to_pylist()]
    images = [row for path in work.glob("data/*/index.parquet") for row in read_table(str(path)).to_pylist()]
    assert len(rows) == len(images) == 16
    assert {(row["dataset"], row["image_id"]) for row in rows} == {(row["dataset"], row["image_id"]) for row in images}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    _run("train", *command)  # nothing is trained again
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_infer_writes_one_row_per_image(work: Path) -> None:
    archive, out = work / "data" / "phantoms", work / "predictions"
    _run("infer", "--archive", str(archive), "--checkpoint", str(work / "runs" / "demo"), "--out", str(out))
    rows = [row for path in sorted(out.glob("rows/part-*.parquet")) for row in read_table(str(path)).to_pylist()]
    assert sorted(row["source_uri"] for row in rows) == sorted(str(path) for path in archive.rglob("images/*.png"))
    assert {row["status"] for row in rows} == {"ok"}


def test_report_shows_study_and_predictions(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["--study", str(work / "runs" / "demo"), "--predictions", str(work / "predictions")]
    _run("report", *paths, "--out", str(work / "report"))
    output = capsys.readouterr().out
    assert "cross" in output
    assert "held-out" in output
    page = (work / "report" / "report.html").read_text()
    assert "phantom-shenzhen" in page
    assert "data:image/" in page
    assert json.loads((work / "report" / "report.json").read_text())["schema"] == SCHEMA
