import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import psutil
import pytest
import torch

from lungseg.config import LoaderSettings, ModelSettings, PreprocessSettings, TrainSettings
from lungseg.data import audit, datasets, folds, sources
from lungseg.data.shard_plan import plan_shards
from lungseg.engine import fit
from lungseg.errors import LungsegError, ResourceError, SettingsError
from lungseg.pipelines import results, tables, train
from lungseg.storage import read_table

TINY = ModelSettings(encoder="tu-mobilenetv3_small_100", weights="none")


def _settings(prepared: Path, out: Path, **changes: object) -> TrainSettings:
    values: dict[str, object] = {
        "data": (str(prepared),),
        "out": str(out),
        "folds": 4,
        "only_folds": (0,),
        "model": TINY,
        "loader": LoaderSettings(batch=2),
        "epochs": 1,
        "workers": 2,
    }
    return TrainSettings.model_validate({**values, **changes})


def test_both_protocols_with_two_workers_and_again(
    ray_cluster: None, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(prepared, tmp_path, protocols=("pooled",))
    train.run(settings)
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    (name,) = study["runs"]
    run = tmp_path / "study" / name
    rows = [row for path in sorted(run.glob("tested.parquet")) for row in read_table(str(path)).to_pylist()]
    images = [
        (row["dataset"], row["image_id"])
        for folder in datasets.find_datasets([str(prepared)])
        for row in datasets.open_dataset(folder).index.to_pylist()
    ]
    trained = read_table(str(next(run.glob("checkpoint/epoch-*/trained_on.parquet")))).to_pylist()
    # Two ranks between them tested every image once that the run was not trained on.
    assert sorted((row["dataset"], row["image_id"]) for row in [*rows, *trained]) == sorted(images)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train.run(settings)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_killed_worker_is_replaced(ray_cluster: None, prepared: Path, tmp_path: Path) -> None:
    killed = threading.Event()

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed.is_set():
            metrics = list(tmp_path.glob("study/*/metrics.jsonl"))
            family = psutil.Process().children(recursive=True)
            workers = [process for process in family if "RayTrainWorker" in _title(process)]
            if metrics and workers:
                os.kill(workers[-1].pid, signal.SIGKILL)
                killed.set()
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    train.run(_settings(prepared, tmp_path, epochs=12))
    killer.join()
    assert killed.is_set()
    lines = [json.loads(line) for path in tmp_path.glob("study/*/metrics.jsonl") for line in path.open()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:  # it ended while we looked
        return ""


def test_what_a_user_can_mend_is_not_tried_again(ray_cluster: None, prepared: Path, tmp_path: Path) -> None:
    model = ModelSettings(encoder="resnet18", weights=str(tmp_path / "missing.pth"))
    with pytest.raises(LungsegError, match=r"missing\.pth: cannot be read"):
        train.run(_settings(prepared, tmp_path, model=model))
    assert not list(tmp_path.glob("study/*/metrics.jsonl"))


def _train_here(one: fit.Run, placed: object) -> None:
    fit.finish(fit.start(one, torch.device("cpu")), lambda _: None)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train without a cluster."""
    monkeypatch.setattr(train, "_train", _train_here)
    monkeypatch.setattr(train, "connect", lambda: None)
    monkeypatch.setattr(train, "share", lambda *_: None)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_each_data_set_is_left_out_once(
    in_this_process: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(_settings(prepared, tmp_path, protocols=("leave-one-dataset-out",), folds=3, workers=1))
    study = results.read_study(str(tmp_path / "study"))
    assert sorted(name.rsplit("-", 1)[0] for name in study.runs) == ["without-north-fold0", "without-south-fold0"]
    sides = {
        table.about["train_on"][0]: {
            line.about["role"]: (line.about["dataset"], line.figures["images"]) for line in table.lines
        }
        for table in study.tables
    }
    assert sides["south"]["cross"] == ("north", 5)
    assert sides["north"]["cross"] == ("south", 3)
    assert sides["north"]["held-out"][0] == "north"
    tables.show(study, None, [])
    assert "trained on north (leave-one-dataset-out)" in capsys.readouterr().out


@pytest.fixture
def doubled(own_archive: Path, tmp_path: Path) -> Path:
    """Prepared data sets of which south holds a picture of north, and another one saved as JPEG."""
    for kind in ("images", "masks"):
        shutil.copy(own_archive / "north" / kind / "north_00.png", own_archive / "south" / kind / "south_07.png")
        shutil.copy(own_archive / "north" / kind / "north_03.png", own_archive / "south" / kind / "south_08.png")
    path = own_archive / "south" / "images" / "south_08.png"
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    path.unlink()
    assert cv2.imwrite(str(path.with_suffix(".jpg")), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    out = tmp_path / "doubled"
    datasets.write_datasets(plan_shards(sources.discover(str(own_archive)), str(out), PreprocessSettings(size=64)))
    return out


def test_doubles_are_named_and_stay_on_one_side(
    in_this_process: None,
    doubled: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    settings = _settings(doubled, tmp_path, protocols=("leave-one-dataset-out",), folds=2, only_folds=(), workers=1)
    train.run(settings)
    path = tmp_path / "study" / "duplicates.parquet"
    table = read_table(str(path))
    found = {(pair["first"], pair["second"], pair["kind"]) for pair in table.to_pylist()}
    assert found == {
        ("north/north_00", "south/south_07", "exact"),
        ("north/north_03", "south/south_08", "near"),
    }
    assert table.schema.equals(audit.PAIRS)
    said = "audit: 1 exact, 1 near duplicate pairs, 0 patients with several images; they stay in one fold: "
    assert f"{said}{path}" in caplog.text
    runs = json.loads((tmp_path / "study" / "study.json").read_text())["runs"]
    assert len(runs) == 4
    for run in runs:
        folder = tmp_path / "study" / run
        learnt = read_table(str(next(folder.glob("checkpoint/epoch-*/trained_on.parquet")))).to_pylist()
        tested = read_table(str(folder / "tested.parquet")).to_pylist()
        names = [{f"{row['dataset']}/{row['image_id']}" for row in side} for side in (learnt, tested)]
        for first, second, _ in found:
            assert not ({first, second} & names[0] and {first, second} & names[1])
    # The same data are not compared again, other data are.
    monkeypatch.setattr(audit, "find_pairs", lambda *_: [])
    train.run(settings)
    assert read_table(str(path)) == table
    train.run(_settings(doubled / "north", tmp_path, folds=2, workers=1))
    assert read_table(str(path)).num_rows == 0


def test_a_study_keeps_the_runs_that_earlier_commands_finished(
    ray_cluster: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_train", _train_here)
    for fold in (0, 1):
        train.run(_settings(prepared, tmp_path, folds=2, only_folds=(fold,), workers=1))
    with pytest.raises(ResourceError):
        train.run(_settings(prepared, tmp_path, folds=8, only_folds=(_fold_of_few(prepared),), workers=3))
    names = json.loads((tmp_path / "study" / "study.json").read_text())["runs"]
    assert [name.rsplit("-", 1)[0] for name in names] == ["pooled-fold0", "pooled-fold1"]


def test_too_few_images_for_the_workers(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needed for 9 workers: lower --workers"):
        train.run(_settings(prepared, tmp_path, workers=9))


def _fold_of_few(prepared: Path) -> int:
    """A fold of eight that holds out an image or two, so that six are left to train on."""
    data = [datasets.open_dataset(folder) for folder in datasets.find_datasets([str(prepared)])]
    rows = [row for part in data for row in part.index.to_pylist()]
    held = Counter(folds.assign_folds(rows, folds.group_rows(rows), 8, 0))
    return next(fold for fold, count in held.items() if count <= 2)


def test_too_many_workers(ray_cluster: None, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="pass --workers 2"):
        train.run(_settings(prepared, tmp_path, workers=3, folds=8, only_folds=(_fold_of_few(prepared),)))


def test_the_cause_of_a_failure_is_one_line() -> None:
    class FailedError(Exception):
        worker_failures = {0: ValueError("Traceback...\nValueError: the story")}  # noqa: RUF012

    assert train._cause(FailedError()) == "ValueError: the story"
