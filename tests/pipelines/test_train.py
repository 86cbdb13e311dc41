import json
import logging
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import pytest

from lungseg.cluster.resources import WorkerAllocation
from lungseg.config import LoaderSettings, ModelSettings, PreprocessSettings, TrainSettings
from lungseg.dataset import catalog, duplicate_audit, duplicates, folds
from lungseg.errors import LungsegError, ResourceError, SettingsError
from lungseg.ingest import sources
from lungseg.pipelines import train, train_pool, train_run
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.progress import SharedProgressLine
from lungseg.report import console, study_results
from lungseg.result_columns import STUDY_ROWS
from lungseg.storage import read_table
from lungseg.study import study_plan
from lungseg.study.study_comparison import StudyComparisons
from lungseg.training.run import Run, name_run
from tests.fold_rows import assign_folds, group_rows
from tests.pipelines.conftest import train_here

TINY = ModelSettings(encoder="tu-test_efficientnet", weights="none")


def _settings(prepared: Path, out: Path, **changes: object) -> TrainSettings:
    values: dict[str, object] = {
        "data": (str(prepared),),
        "out": str(out),
        "folds": 3,
        "only_folds": (0,),
        "model": TINY,
        "loader": LoaderSettings(batch_size=2),
        "epochs": 1,
        "workers_per_run": 2,
        "compute": {"threads": 1},
    }
    return TrainSettings.model_validate({**values, **changes})


def test_each_dataset_is_left_out_once(
    in_this_process: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(_settings(prepared, tmp_path, protocols=("leave-one-dataset-out",), folds=3, workers_per_run=1))
    study = study_results.read_study(str(tmp_path / "study"))
    assert sorted(name.rsplit("-", 1)[0] for name in study.runs) == ["without-north-fold0", "without-south-fold0"]
    sides = {
        table.about["train_on"][0]: {
            line.about["role"]: (line.about["dataset"], line.metrics["images"]) for line in table.lines
        }
        for table in study.tables
    }
    assert sides["south"]["cross"] == ("north", 5)
    assert sides["north"]["cross"] == ("south", 3)
    assert sides["north"]["held-out"][0] == "north"
    console.print_report(study, StudyComparisons(), None, [])
    assert "trained on north (leave-one-dataset-out)" in capsys.readouterr().out


@pytest.fixture
def doubled(own_archive: Path, tmp_path: Path) -> Path:
    """Prepared datasets; south contains a copy of one image of north, and a JPEG copy of another."""
    for kind in ("images", "masks"):
        shutil.copy(own_archive / "north" / kind / "north_00.png", own_archive / "south" / kind / "south_07.png")
        shutil.copy(own_archive / "north" / kind / "north_03.png", own_archive / "south" / kind / "south_08.png")
    path = own_archive / "south" / "images" / "south_08.png"
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    path.unlink()
    assert cv2.imwrite(str(path.with_suffix(".jpg")), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    out = tmp_path / "doubled"
    dataset_writer.write_datasets(
        plan_shards(sources.discover(str(own_archive)), str(out), PreprocessSettings(size=64))
    )
    return out


def test_duplicates_are_listed_and_stay_in_one_fold(
    in_this_process: None,
    doubled: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    settings = _settings(
        doubled, tmp_path, protocols=("leave-one-dataset-out",), folds=2, only_folds=(), workers_per_run=1
    )
    train.run(settings)
    path = tmp_path / "study" / "duplicates.parquet"
    table = read_table(str(path))
    listed = {(pair["first"], pair["second"], pair["kind"]) for pair in table.to_pylist()}
    assert listed == {
        ("north/north_00", "south/south_07", "exact"),
        ("north/north_03", "south/south_08", "near"),
    }
    assert table.schema.equals(duplicates.PAIRS)
    counts = "1 exact duplicate pair and 1 near duplicate pair, each taken for one patient"
    assert f"audit: {counts}; listed patients with several images: 0; the images of" in caplog.text
    assert f"always in the same fold: {path}" in caplog.text
    runs = json.loads((tmp_path / "study" / "study.json").read_text())["runs"]
    assert len(runs) == 4
    for run in runs:
        folder = tmp_path / "study" / run
        learnt = read_table(str(next(folder.glob("checkpoint/epoch-*/trained_on.parquet")))).to_pylist()
        tested = read_table(str(folder / "tested.parquet")).to_pylist()
        names = [{f"{row['dataset']}/{row['image_id']}" for row in side} for side in (learnt, tested)]
        for first, second, _ in listed:
            assert not ({first, second} & names[0] and {first, second} & names[1])
    # Only changed data are compared again.
    monkeypatch.setattr(duplicate_audit, "find_pairs", lambda *_: [])
    train.run(settings)
    assert read_table(str(path)) == table
    train.run(_settings(doubled / "north", tmp_path, folds=2, workers_per_run=1))
    assert read_table(str(path)).num_rows == 0


def test_study_keeps_finished_runs_of_earlier_commands(
    ray_cluster: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_run, "train", train_here)
    for fold in (0, 1):
        train.run(_settings(prepared, tmp_path, folds=2, only_folds=(fold,), workers_per_run=1))
    with pytest.raises(ResourceError):
        train.run(_settings(prepared, tmp_path, only_folds=(_fold_of_few(prepared),), workers_per_run=3))
    names = json.loads((tmp_path / "study" / "study.json").read_text())["runs"]
    assert [name.rsplit("-", 1)[0] for name in names] == ["pooled-fold0", "pooled-fold1"]


def test_too_few_images_for_the_workers_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needed for 9 workers: lower --workers-per-run"):
        train.run(_settings(prepared, tmp_path, workers_per_run=9))


def _fold_of_few(prepared: Path) -> int:
    """Return one of three folds that holds out at most two images, so that six remain for training."""
    data = [catalog.open_dataset(folder) for folder in catalog.find_datasets([str(prepared)])]
    rows = [row for part in data for row in part.index.to_pylist()]
    counts = Counter(assign_folds(rows, group_rows(rows), 3, 0))
    return next(fold for fold, count in counts.items() if count <= 2)


def test_too_many_workers_are_refused(ray_cluster: None, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="pass --workers-per-run 2"):
        train.run(_settings(prepared, tmp_path, workers_per_run=3, only_folds=(_fold_of_few(prepared),)))


def test_more_folds_than_patients_are_refused(in_this_process: None, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"--folds 4: south has 3 groups of images .*: lower --folds, or leave south"
    ):
        train.run(_settings(prepared, tmp_path, folds=4))
    train.run(_settings(prepared / "north", tmp_path, folds=4, workers_per_run=1))  # only north has enough images


def test_missing_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LungsegError, match="nowhere: no such folder"):
        train.run(_settings(tmp_path / "nowhere", tmp_path))


def test_study_results_are_written_and_shown(
    in_this_process: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"protocols": ("source-to-source",), "only_folds": (), "workers_per_run": 1}
    train.run(_settings(prepared, tmp_path, **settings))
    study = tmp_path / "study"
    content = json.loads((study / "study.json").read_text())
    assert [state["state"] for state in content["states"].values()] == ["finished"] * 6
    assert [(run["protocol"], run["train_on"], run["fold"]) for run in content["states"].values()] == [
        ("source-to-source", [name], fold) for name in ("north", "south") for fold in (0, 1, 2)
    ]
    results = read_table(str(study / "study.parquet"))
    assert results.schema.equals(STUDY_ROWS)
    assert results.num_rows == 5 + 3 + 3 * (
        5 + 3
    )  # each image: once held-out, and three times for runs of the other dataset
    cells = {(cell["train_on"], cell["dataset"]): cell for cell in content["results"]["cells"]}
    assert {pair: cell["images"] for pair, cell in cells.items()} == {
        ("north", "north"): 5,
        ("north", "south"): 3,
        ("south", "south"): 3,
        ("south", "north"): 5,
    }
    assert {(gap["train_on"], gap["dataset"]) for gap in content["results"]["gaps"]} == {
        ("north", "south"),
        ("south", "north"),
    }
    output = capsys.readouterr().out
    assert "north (source-to-source) " in output
    assert "gap " in output
    # Runs with other settings stay listed but are not part of the results.
    train.run(_settings(prepared, tmp_path, **{**settings, "epochs": 2, "only_folds": (0,)}))
    content = json.loads((study / "study.json").read_text())
    assert len(content["runs"]) == 8
    assert [state["in_results"] for state in content["states"].values()] == [False] * 6 + [True] * 2
    assert set(read_table(str(study / "study.parquet")).column("run").to_pylist()) == set(content["runs"][6:])


def test_one_source_can_be_trained_on_alone(in_this_process: None, prepared: Path, tmp_path: Path) -> None:
    settings = {"protocols": ("source-to-source", "pooled"), "workers_per_run": 1}
    train.run(_settings(prepared, tmp_path, **settings, train_on=("south",)))
    runs = json.loads((tmp_path / "study" / "study.json").read_text())["states"].values()
    assert [(run["protocol"], run["train_on"]) for run in runs] == [
        ("source-to-source", ["south"]),
        ("pooled", ["north", "south"]),
    ]
    with pytest.raises(SettingsError, match=r"--train-on west: datasets that a run trains on alone: north, south"):
        train.run(_settings(prepared, tmp_path, **settings, train_on=("west",)))
    with pytest.raises(SettingsError, match=r"--train-on south: .*: none: it requires --protocols source-to-source"):
        train.run(_settings(prepared, tmp_path, protocols=("pooled",), train_on=("south",)))


def test_failed_runs_are_named_and_repeated(
    in_this_process: None,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def some_fail(run: Run, *_: object) -> None:
        if run.plan.fold == 0:
            raise LungsegError("the loss became nan: lower --optim.lr")
        if run.plan.fold == 1:
            raise KeyError("a bug")
        train_here(run)

    monkeypatch.setattr(train_run, "train", some_fail)
    settings = _settings(prepared, tmp_path, only_folds=(), workers_per_run=1)
    message = (
        r"^1 of 3 runs finished; pooled-fold0-\w+ failed: the loss became nan: lower --optim.lr; "
        r"pooled-fold1-\w+ failed: KeyError: 'a bug'; to continue, run the same command again$"
    )
    with pytest.raises(LungsegError, match=message) as caught:
        train.run(settings)
    assert caught.value.exit_status == 1
    assert "Traceback" in caplog.text  # of the KeyError
    states = list(json.loads((tmp_path / "study" / "study.json").read_text())["states"].values())
    assert [state["state"] for state in states] == ["failed", "failed", "finished"]
    assert states[0]["reason"] == "the loss became nan: lower --optim.lr"
    monkeypatch.setattr(train_run, "train", train_here)
    train.run(settings)
    states = list(json.loads((tmp_path / "study" / "study.json").read_text())["states"].values())
    assert [state["state"] for state in states] == ["finished"] * 3
    assert "reason" not in states[0]


def test_settings_error_of_a_run_ends_with_2(
    in_this_process: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SettingsError("no such encoder")

    monkeypatch.setattr(train_run, "train", refuse)
    with pytest.raises(SettingsError, match=r"0 of 1 run finished; pooled-fold0-.* failed: no such encoder"):
        train.run(_settings(prepared, tmp_path, workers_per_run=1))


def test_runs_at_once_are_limited_and_stop_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    running, peak, done, lock = 0, 0, [], threading.Lock()

    def slow(run: str, *_: object) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.1)
        with lock:
            running -= 1
        done.append(run)

    monkeypatch.setattr(train_run, "train", slow)
    names = [str(i) for i in range(5)]
    line = SharedProgressLine(logging.getLogger("test"))
    outcomes = train_pool.train_in_threads(names, 2, WorkerAllocation(1, 1, 0), line)  # type: ignore[arg-type]
    assert sorted(name for name, error in outcomes if error is None) == names  # type: ignore[type-var]
    assert peak == 2
    assert line.closed.is_set()
    done.clear()
    outcomes = train_pool.train_in_threads(
        names, 2, WorkerAllocation(1, 1, 0), SharedProgressLine(logging.getLogger("test"))
    )  # type: ignore[arg-type]
    next(outcomes)
    outcomes.close()  # like Ctrl-C
    time.sleep(0.5)
    assert len(done) <= 4


def test_a_signal_to_any_thread_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give SIGTERM to another thread; the main thread, where Python handles it, then keeps waiting."""

    class TerminatedError(Exception):
        pass

    def end(*_: object) -> None:
        raise TerminatedError

    release, ended = threading.Event(), list[bool]()

    def run(*_: object) -> None:
        time.sleep(0.1)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        ended.append(release.wait(10))

    monkeypatch.setattr(train_run, "train", run)
    line = SharedProgressLine(logging.getLogger("test"))
    outcomes = train_pool.train_in_threads(["run"], 1, WorkerAllocation(1, 1, 0), line)  # type: ignore[arg-type,list-item]
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(TerminatedError):
            next(outcomes)
        assert not ended
    finally:
        signal.signal(signal.SIGTERM, before)
        release.set()


@pytest.mark.slow
def test_failed_run_does_not_stop_the_run_beside_it(
    ray_cluster: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two runs with one worker each in Ray. One of them fails: a file blocks its checkpoint folder."""
    caplog.set_level("INFO")
    settings = _settings(prepared, tmp_path, only_folds=(0, 1), workers_per_run=1)

    def name(settings: TrainSettings, plan: folds.RunPlan, data: list[catalog.PreparedDataset]) -> str:
        run = name_run(settings, plan, data)
        if plan.fold == 0:
            (tmp_path / "study" / run).mkdir(parents=True, exist_ok=True)
            (tmp_path / "study" / run / "checkpoint").write_text("no folder")
        return run

    monkeypatch.setattr(study_plan, "name_run", name)
    with pytest.raises(
        LungsegError, match=r"^1 of 2 runs finished; pooled-fold0-\w+ failed: .*checkpoint: a file, exp"
    ):
        train.run(settings)
    assert "2 runs to train, 2 at once" in caplog.text
    assert "1 worker, 1 CPU" in caplog.text
    states = list(json.loads((tmp_path / "study" / "study.json").read_text())["states"].values())
    assert [state["state"] for state in states] == ["failed", "finished"]
