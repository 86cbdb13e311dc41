"""One run of a study in this process: what it writes, how it goes on after a crash, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg import storage
from lungseg.config import (
    AugmentSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.data import datasets, sources
from lungseg.data.datasets import PreparedData
from lungseg.data.folds import RunPlan, assign_folds, group_rows, split
from lungseg.data.shard_plan import plan_shards
from lungseg.engine import checkpoint, fit
from lungseg.errors import InputError, SettingsError
from lungseg.schema import SCHEMA, TEST_ROWS

torch.set_num_threads(1)  # two threads that wait for each other are ten times slower on a busy machine

CPU = torch.device("cpu")
EPOCHS = 3
SETTINGS = TrainSettings(
    folds=5,
    seed=3,
    epochs=EPOCHS,
    model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
    optim=OptimSettings(lr=5e-3, weight_decay=1e-2, schedule="one-cycle"),
    augment=AugmentSettings(rotate_deg=8.0, scale=0.1, shift=0.05, gamma=0.3, flip=0.5),
    loader=LoaderSettings(batch=2, threads=2),
    wandb=WandbSettings(mode="disabled"),
)
# From north to south; each of five folds trains on four of north's five and holds one out.
PLAN = RunPlan("source-to-source", ("north",), fold=0, folds=5, seed=3)
TIMES = ("train_s", "epoch_s", "images_per_s")


def nobody(_: fit.Progress) -> None:
    """Show a run to nobody."""


@pytest.fixture(scope="module")
def folders(prepared: Path) -> tuple[str, ...]:
    return str(prepared / "north"), str(prepared / "south")


def a_run(folders: tuple[str, ...], folder: Path, settings: TrainSettings = SETTINGS, plan: RunPlan = PLAN) -> fit.Run:
    return fit.Run(settings, plan, folders, fit.name_run(settings, plan, fit.open_data(folders)), str(folder))


def go(run: fit.Run, show: fit.Show = nobody) -> dict[str, Any]:
    return fit.finish(fit.start(run, CPU), show)


@pytest.fixture(scope="module")
def finished(folders: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> fit.Run:
    """A run that nothing interrupted; only read."""
    run = a_run(folders, tmp_path_factory.mktemp("runs") / "whole")
    go(run)
    return run


def metrics_of(run: fit.Run) -> list[dict[str, Any]]:
    lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def index_rows(run: fit.Run) -> list[dict[str, Any]]:
    return [row for data in fit.open_data(run.data) for row in data.index.to_pylist()]


def test_a_run_writes_its_files_and_no_others(finished: fit.Run) -> None:
    folder = Path(finished.folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    inside = {"model.safetensors", "state.pt", "trained_on.parquet", "config.json"}
    expected = {f"checkpoint/epoch-000{EPOCHS}/{name}" for name in inside}
    assert files == expected | {"metrics.jsonl", "tested.parquet", "run.json"}


def test_metrics_has_a_line_an_epoch_with_every_figure(finished: fit.Run) -> None:
    rows = [json.loads(line) for line in (Path(finished.folder) / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    for row in rows:
        assert row["run"] == finished.name
        assert row["held_out_images"] == 1
        assert all(0.0 <= row[f"held_out_{name}"] <= 1.0 for name in ("dice", "iou", "pixel_accuracy"))
        assert all(row[name] > 0 for name in ("loss", "lr", *TIMES))
        assert row["epoch_s"] >= row["train_s"]
    assert rows[-1]["lr"] < rows[0]["lr"] <= SETTINGS.optim.lr


def test_each_image_is_tested_once_and_none_that_was_trained_on(finished: fit.Run) -> None:
    rows = index_rows(finished)
    parts = split(rows, finished.plan)
    table = storage.read_table(f"{finished.folder}/tested.parquet")
    assert table.schema.equals(TEST_ROWS, check_metadata=True)
    tested = table.to_pylist()
    found = sorted((row["role"], row["dataset"], row["image_id"]) for row in tested)
    expected = [("held-out", rows[i]["dataset"], rows[i]["image_id"]) for i in parts.held_out]
    expected += [("cross", rows[i]["dataset"], rows[i]["image_id"]) for i in parts.cross]
    assert found == sorted(expected)
    assert (len(parts.train), len(parts.held_out)) == (4, 1)
    learnt = storage.read_table(f"{finished.folder}/checkpoint/epoch-000{EPOCHS}/trained_on.parquet").to_pylist()
    assert {row["image_id"] for row in learnt} == {rows[i]["image_id"] for i in parts.train}
    assert not {row["image_id"] for row in learnt} & {row["image_id"] for row in tested}
    assert {row["run"] for row in tested} == {finished.name}


def test_a_linked_image_is_held_out_with_its_double(
    folders: tuple[str, ...], finished: fit.Run, tmp_path: Path
) -> None:
    (held,) = fit.start(finished, CPU).parts.held_out
    rows = index_rows(finished)
    double = next(i for i, row in enumerate(rows) if row["dataset"] == "north" and i != held)
    south = next(i for i, row in enumerate(rows) if row["dataset"] == "south")
    names = [f"{rows[i]['dataset']}/{rows[i]['image_id']}" for i in (held, double, south)]
    linked = (names[0], names[1]), (names[1], names[2])
    splits = [
        fit.start(replace(finished, folder=str(tmp_path), linked=linked, plan=replace(PLAN, fold=fold)), CPU).parts
        for fold in range(5)
        if fold_has_rows(rows, linked, fold)
    ]
    for parts in splits:
        assert (held in parts.held_out) == (double in parts.held_out) == (south in parts.cross)
    assert sum(held in parts.held_out for parts in splits) == 1


def fold_has_rows(rows: list[dict[str, Any]], linked: tuple[tuple[str, str], ...], fold: int) -> bool:
    found = assign_folds(rows, group_rows(rows, linked), PLAN.folds, PLAN.seed)
    return any(row["dataset"] == "north" and one == fold for row, one in zip(rows, found, strict=True))


def test_tested_rows_hold_together(finished: fit.Run) -> None:
    for row in storage.read_table(f"{finished.folder}/tested.parquet").to_pylist():
        assert 0 < row["tp"] + row["fp"] + row["fn"] + row["tn"] <= 64 * 64
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))


def test_run_json_says_how_every_figure_was_made(finished: fit.Run) -> None:
    summary = storage.read_json(f"{finished.folder}/run.json")
    assert summary["schema"] == SCHEMA
    assert summary["run"] == finished.name
    assert summary["protocol"] == "source-to-source"
    assert summary["train_on"] == ["north"]
    assert (summary["fold"], summary["folds"], summary["epochs"]) == (0, 5, EPOCHS)
    assert summary["trained_images"] == 4
    assert summary["resolution"] == "64 px"
    assert summary["threshold"] == 0.5
    assert summary["aggregation"] == "mean over images"
    assert TrainSettings.model_validate(summary["settings"]) == SETTINGS
    rows = storage.read_table(f"{finished.folder}/tested.parquet").to_pylist()
    assert [(part["role"], part["dataset"], part["images"]) for part in summary["tested"]] == [
        ("cross", "south", 3),
        ("held-out", "north", 1),
    ]
    for part in summary["tested"]:
        for name in ("dice", "iou", "pixel_accuracy"):
            values = [row[name] for row in rows if row["dataset"] == part["dataset"]]
            assert part[name] == pytest.approx(np.mean(values))


def test_the_checkpoint_explains_the_model(finished: fit.Run) -> None:
    found = checkpoint.find(finished.folder)
    assert found.epoch == EPOCHS
    assert found.preprocess == PreprocessSettings(size=64)
    assert found.config["train_on"] == ["north"]
    assert TrainSettings.model_validate(found.config["settings"]) == SETTINGS
    held_out = metrics_of(finished)[-1]["held_out_dice"]
    (tested,) = [part for part in storage.read_json(f"{finished.folder}/run.json")["tested"] if part["images"] == 1]
    assert tested["dice"] == held_out  # the last epoch's model is the one that is tested


def test_progress_counts_every_step_of_every_epoch(folders: tuple[str, ...], tmp_path: Path) -> None:
    shown: list[fit.Progress] = []
    go(a_run(folders, tmp_path, SETTINGS.model_copy(update={"epochs": 2})), shown.append)
    steps = [(one.epoch, one.step, one.steps) for one in shown if not one.note]
    assert steps == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    notes = [one for one in shown if one.note]
    assert [one.epoch for one in notes] == [1, 2, 2]
    assert "held-out Dice" in notes[0].note
    assert notes[-1].note == "testing"


class CrashError(Exception):
    """Stands for the process's end."""


def crash_when(what: Callable[[fit.Progress], bool]) -> fit.Show:
    def show(progress: fit.Progress) -> None:
        if what(progress):
            raise CrashError

    return show


MOMENTS = {
    "in the first epoch": lambda p: (p.epoch, p.step) == (1, 2),
    "after the first epoch's saving": lambda p: (p.epoch, p.step) == (2, 1),
    "before the second epoch's saving": lambda p: p.epoch == 2 and p.note != "",
    "before testing": lambda p: p.note == "testing",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    moment: str, finished: fit.Run, folders: tuple[str, ...], tmp_path: Path
) -> None:
    run = a_run(folders, tmp_path)
    assert run.name == finished.name
    with pytest.raises(CrashError):
        go(run, crash_when(MOMENTS[moment]))
    assert not (tmp_path / "run.json").exists()
    torch.manual_seed(999)  # a new process has another random state
    go(run)
    same_result(run, finished)


def test_a_run_that_was_killed_between_its_line_and_its_checkpoint_ends_alike(
    finished: fit.Run, folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = a_run(folders, tmp_path), checkpoint.save

    def crash(folder: str, *what: Any) -> None:
        if what[2]["epoch"] == 2:
            raise CrashError
        save(folder, *what)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", crash)
        with pytest.raises(CrashError):
            go(run)
    assert [row["epoch"] for row in metrics_of(run)] == [1, 2]
    go(run)
    same_result(run, finished)


def same_result(run: fit.Run, expected: fit.Run) -> None:
    """Weights and optimizer bit by bit, every figure but the times."""
    found, whole = checkpoint.find(run.folder), checkpoint.find(expected.folder)
    assert found.config["digests"]["model.safetensors"] == whole.config["digests"]["model.safetensors"]
    optimizers = [
        torch.load(f"{one.folder}/state.pt", weights_only=True)["optimizer"]["state"] for one in (found, whole)
    ]
    for key, state in optimizers[1].items():
        assert all(torch.equal(optimizers[0][key][name], state[name]) for name in state)
    assert metrics_of(run) == metrics_of(expected)
    tables = [storage.read_table(f"{one.folder}/tested.parquet") for one in (run, expected)]
    assert tables[0].equals(tables[1])
    reports = [storage.read_json(f"{one.folder}/run.json") for one in (run, expected)]
    assert reports[0] == reports[1]


def test_a_finished_run_entered_again_does_not_train(finished: fit.Run) -> None:
    files = [path for path in Path(finished.folder).rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    shown: list[fit.Progress] = []
    again = go(finished, shown.append)
    assert [one.note for one in shown] == ["testing"]
    assert {path: path.read_bytes() for path in files} == before
    assert json.loads(json.dumps(again))["tested"] == storage.read_json(f"{finished.folder}/run.json")["tested"]


def test_a_damaged_checkpoint_is_not_gone_on_from(folders: tuple[str, ...], finished: fit.Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path)
    with pytest.raises(CrashError):
        go(run, crash_when(lambda p: (p.epoch, p.step) == (2, 1)))
    weights = tmp_path / "checkpoint" / "epoch-0001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    go(run)  # from the start
    same_result(run, finished)


def test_another_seed_is_another_model(folders: tuple[str, ...], finished: fit.Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, SETTINGS.model_copy(update={"seed": 4}))  # its plan is the same: the same split
    go(run)
    assert checkpoint.find(run.folder).digest != checkpoint.find(finished.folder).digest


@pytest.fixture(scope="module")
def data(folders: tuple[str, ...]) -> list[PreparedData]:
    return fit.open_data(folders)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 4},
        {"seed": 4},
        {"folds": 3},
        {"threshold": 0.4},
        {"workers": 2},
        {"model": ModelSettings(encoder="resnet50", weights="none")},
        {"optim": OptimSettings(lr=1e-3)},
        {"loss": LossSettings(dice=0.5)},
        {"augment": AugmentSettings()},
        {"loader": LoaderSettings(batch=4, threads=2)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_shapes_the_result_shapes_the_name(changes: dict[str, Any], data: list[PreparedData]) -> None:
    changed = SETTINGS.model_copy(update=changes)
    assert fit.name_run(changed, PLAN, data) != fit.name_run(SETTINGS, PLAN, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"out": "/elsewhere"},
        {"study": "another"},
        {"wandb": WandbSettings(mode="offline", project="p")},
        {"data": ("/a/moved/folder",)},
        {"only_folds": (0,)},
        {"protocols": ("pooled", "source-to-source")},
        {"max_failures": 0},
        {"phantoms": 9},
        {"dry_run": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_shape_the_result_does_not_shape_the_name(
    changes: dict[str, Any], data: list[PreparedData]
) -> None:
    changed = SETTINGS.model_copy(update=changes)
    assert fit.name_run(changed, PLAN, data) == fit.name_run(SETTINGS, PLAN, data)


def test_a_runs_name_tells_plans_and_data_apart(data: list[PreparedData]) -> None:
    plans = [PLAN, replace(PLAN, fold=1), replace(PLAN, train_on=("south",)), replace(PLAN, protocol="pooled")]
    names = [fit.name_run(SETTINGS, plan, data) for plan in plans]
    other = [replace(data[0], digest="0" * 16), data[1]]
    names += [fit.name_run(SETTINGS, PLAN, other), fit.name_run(SETTINGS, PLAN, data[:1])]
    assert len(set(names)) == len(names)
    assert names[0].startswith("from-north-fold0-")
    assert names[3].startswith("pooled-fold0-")


def test_a_moved_data_set_is_the_same_data(data: list[PreparedData]) -> None:
    moved = [replace(part, folder="/elsewhere/" + part.name) for part in data]
    assert fit.name_run(SETTINGS, PLAN, moved) == fit.name_run(SETTINGS, PLAN, data)


def prepare(records: list[Any], out: Path, size: int = 64) -> tuple[str, ...]:
    datasets.write_datasets(plan_shards(records, str(out), PreprocessSettings(size=size), 8))
    return tuple(datasets.find_datasets([str(out)]))


def test_data_without_any_mask_cannot_be_trained_on(archive: Path, tmp_path: Path) -> None:
    maskless = prepare(sources.pair(str(archive / "south" / "images"), "", "maskless"), tmp_path)
    with pytest.raises(InputError, match="maskless: none of 3 images has a mask: training needs masks"):
        fit.open_data(maskless)


def test_images_without_a_mask_are_left_out_aloud(
    archive: Path, folders: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = sources.discover(str(archive / "south"), "mixed")
    records[1] = replace(records[1], mask_uris=(), mask_classes=())
    mixed = prepare(records, tmp_path)
    maskless = prepare(sources.pair(str(archive / "south" / "images"), "", "maskless"), tmp_path / "other")
    data = fit.open_data([folders[0], *mixed, *maskless])
    assert [(part.name, part.index.num_rows) for part in data] == [("north", 5), ("mixed", 2)]
    assert records[1].image_id not in data[1].index.column("image_id").to_pylist()
    assert "mixed: 1 of 3 images have no mask" in caplog.text
    assert "maskless: 3 of 3 images have no mask" in caplog.text


def test_an_image_without_a_mask_is_neither_learnt_from_nor_tested_on(archive: Path, tmp_path: Path) -> None:
    records = sources.discover(str(archive / "north"), "north")
    rows = [{**asdict(one), "sha256": one.image_id} for one in records]
    parts = split(rows, PLAN)
    records[parts.train[0]] = replace(records[parts.train[0]], mask_uris=(), mask_classes=())
    run = a_run(prepare(records, tmp_path / "data"), tmp_path / "run", SETTINGS.model_copy(update={"epochs": 1}))
    assert go(run)["trained_images"] == len(parts.train) - 1
    learnt = storage.read_table(f"{run.folder}/checkpoint/epoch-0001/trained_on.parquet").column("image_id")
    tested = storage.read_table(f"{run.folder}/tested.parquet").column("image_id")
    everybody = {one.image_id for one in records}
    assert {*learnt.to_pylist(), *tested.to_pylist()} == everybody - {records[parts.train[0]].image_id}


def test_data_prepared_differently_cannot_be_mixed(archive: Path, folders: tuple[str, ...], tmp_path: Path) -> None:
    records = sources.discover(str(archive / "south"), "south")
    with pytest.raises(InputError, match="were prepared differently") as caught:
        fit.open_data([folders[0], *prepare(records, tmp_path, size=80)])
    assert "size=80" in str(caught.value)
    assert "size=64" in str(caught.value)


def test_one_name_for_two_data_sets_is_refused(folders: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="a second data set named north"):
        fit.open_data([folders[0], folders[0]])


def test_too_few_images_for_the_workers_are_refused(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(folders, tmp_path)
    monkeypatch.setattr(fit, "rank_and_world", lambda: (0, 3))
    with pytest.raises(SettingsError, match="4 training images, 6 needed for 3 workers: lower --workers"):
        fit.start(run, CPU)


def test_a_fold_that_holds_nobody_is_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    plan = replace(PLAN, folds=1000)
    with pytest.raises(SettingsError, match=r"0 held out of 5.*lower --folds \(now 1000\)"):
        fit.start(a_run(folders, tmp_path, plan=plan), CPU)
    assert not (tmp_path / "checkpoint").exists()
