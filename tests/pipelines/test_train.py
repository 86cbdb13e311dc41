import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from lungseg.config import LoaderSettings, ModelSettings, TrainSettings
from lungseg.data import datasets, folds
from lungseg.engine import fit
from lungseg.errors import LungsegError, ResourceError, SettingsError
from lungseg.pipelines import train
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


def test_a_study_keeps_the_runs_that_earlier_commands_finished(
    ray_cluster: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(one: fit.Run, placed: object) -> None:
        fit.finish(fit.start(one, torch.device("cpu")), lambda _: None)

    monkeypatch.setattr(train, "_train", in_this_process)
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
