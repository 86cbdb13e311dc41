"""One run in this process: its files, resuming after a crash, and its errors."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from lungseg import storage
from lungseg.config import (
    AugmentSettings,
    ComputeSettings,
    LoaderSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.dataset import catalog
from lungseg.dataset.folds import RunPlan
from lungseg.errors import InputError, LungsegError, ResourceError, SettingsError
from lungseg.ingest import sources
from lungseg.model import checkpoint, checkpoint_io
from lungseg.model.checkpoint_io import load_state, load_weights
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.result_columns import TEST_ROWS
from lungseg.schema import SCHEMA
from lungseg.training import run_loop, run_state, save_timer, train_step
from lungseg.training.loader import Batch
from lungseg.training.run import Progress, Run, ShowProgress, name_run
from lungseg.training.study_data import open_training_data
from lungseg.training.train_step import Learner, learning_rate
from tests.fold_rows import assign_folds, group_rows, split
from tests.pipelines.processes import kill, title

torch.set_num_threads(1)  # on a busy machine two threads are ten times slower

CPU = torch.device("cpu")
EPOCHS = 3
SETTINGS = TrainSettings(
    folds=5,
    split_seed=3,
    seed=3,
    epochs=EPOCHS,
    model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
    optim=OptimSettings(lr=5e-3, weight_decay=1e-2, schedule="one-cycle"),
    augment=AugmentSettings(rotate_deg=8.0, scale=0.1, shift=0.05, gamma=0.3, flip=0.5),
    loader=LoaderSettings(batch_size=2, processes=0),
    wandb=WandbSettings(mode="disabled"),
)
# From north to south; each of five folds trains on four of north's five and holds one out.
PLAN = RunPlan("source-to-source", ("north",), fold=0, folds=5, split_seed=3)
TIMES = ("train_s", "epoch_s", "images_per_second", "rank_images_per_second", "device_wait_share")


def ignore_progress(_: Progress) -> None:
    """Show no progress."""


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests simulate the end of processes, not of machines."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def folders(prepared: Path) -> tuple[str, ...]:
    return str(prepared / "north"), str(prepared / "south")


def changed(**changes: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=changes)


def a_run(folders: tuple[str, ...], folder: Path, settings: TrainSettings = SETTINGS, plan: RunPlan = PLAN) -> Run:
    plan = replace(plan, validates=settings.validates)
    return Run(settings, plan, folders, name_run(settings, plan, open_training_data(folders)), str(folder))


def go(run: Run, show: ShowProgress = ignore_progress) -> dict[str, Any]:
    return run_loop.finish(run_state.start(run, CPU), show)


@pytest.fixture(scope="module")
def finished(folders: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; read-only."""
    run = a_run(folders, tmp_path_factory.mktemp("runs") / "whole")
    go(run)
    return run


def metrics_of(run: Run) -> list[dict[str, Any]]:
    lines = (Path(run.folder) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def index_rows(run: Run) -> list[dict[str, Any]]:
    return [row for data in open_training_data(run.data) for row in data.index.to_pylist()]


def test_a_run_writes_its_files_and_no_others(finished: Run) -> None:
    folder = Path(finished.folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    inside = {"model.safetensors", "state.pt", "trained_on.parquet", "config.json"}
    expected = {f"checkpoint/epoch-000{EPOCHS}/{name}" for name in inside}
    assert files == expected | {"metrics.jsonl", "tested.parquet", "run.json", "provenance.json"}


def test_a_profiled_run_has_the_same_name_and_weights(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path / "profiled", changed(profile=True))
    assert run.name == finished.name
    go(run)
    digests = [checkpoint.find_all(item.folder)[0].config["digests"] for item in (run, finished)]
    assert digests[0]["model.safetensors"] == digests[1]["model.safetensors"]
    assert metrics_of(run) == metrics_of(finished)
    trace = json.loads((tmp_path / "profiled" / "profile" / "rank-0.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert {"lungseg call 1", "aten::convolution_backward"} <= names  # the second of the two steps of the first epoch


def test_metrics_jsonl_has_a_complete_line_per_epoch(finished: Run) -> None:
    rows = [json.loads(line) for line in (Path(finished.folder) / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    for row in rows:
        assert row["run"] == finished.name
        assert row["held_out_images"] == 1
        assert all(0.0 <= row[f"held_out_{name}"] <= 1.0 for name in ("dice", "iou", "pixel_accuracy"))
        assert all(row[name] > 0 for name in ("loss", "lr", *TIMES))
        assert row["epoch_s"] >= row["train_s"]
    assert rows[-1]["lr"] < rows[0]["lr"] <= SETTINGS.optim.lr


def test_tested_rows_have_the_group_of_the_split(folders: tuple[str, ...], tmp_path: Path) -> None:
    rows = index_rows(a_run(folders, tmp_path))
    first, second, *_ = [f"{row['dataset']}/{row['image_id']}" for row in rows if row["dataset"] == "south"]
    run = replace(a_run(folders, tmp_path, changed(epochs=1)), linked=((first, second),))
    go(run)
    tested = storage.read_table(f"{run.folder}/tested.parquet").to_pylist()
    groups = {f"{row['dataset']}/{row['image_id']}": row["group"] for row in tested}
    assert groups[first] == groups[second]
    assert len(set(groups.values())) == len(groups) - 1


def test_each_image_is_tested_once_and_never_trained_on(finished: Run) -> None:
    rows = index_rows(finished)
    parts = split(rows, finished.plan)
    table = storage.read_table(f"{finished.folder}/tested.parquet")
    assert table.schema.equals(TEST_ROWS, check_metadata=True)
    tested = table.to_pylist()
    result = sorted((row["role"], row["dataset"], row["image_id"]) for row in tested)
    expected = [("held-out", rows[i]["dataset"], rows[i]["image_id"]) for i in parts.held_out]
    expected += [("cross", rows[i]["dataset"], rows[i]["image_id"]) for i in parts.cross]
    assert result == sorted(expected)
    assert (len(parts.train), len(parts.held_out)) == (4, 1)
    trained_on = storage.read_table(f"{finished.folder}/checkpoint/epoch-000{EPOCHS}/trained_on.parquet").to_pylist()
    assert {row["image_id"] for row in trained_on} == {rows[i]["image_id"] for i in parts.train}
    assert not {row["image_id"] for row in trained_on} & {row["image_id"] for row in tested}
    assert {row["run"] for row in tested} == {finished.name}


def test_linked_images_are_held_out_together(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    (held,) = run_state.start(finished, CPU).split.held_out
    rows = index_rows(finished)
    double = next(i for i, row in enumerate(rows) if row["dataset"] == "north" and i != held)
    south = next(i for i, row in enumerate(rows) if row["dataset"] == "south")
    names = [f"{rows[i]['dataset']}/{rows[i]['image_id']}" for i in (held, double, south)]
    linked = (names[0], names[1]), (names[1], names[2])
    splits = [
        run_state.start(
            replace(finished, folder=str(tmp_path), linked=linked, plan=replace(PLAN, fold=fold)), CPU
        ).split
        for fold in range(5)
        if fold_has_rows(rows, linked, fold)
    ]
    for parts in splits:
        assert (held in parts.held_out) == (double in parts.held_out) == (south in parts.cross)
    assert sum(held in parts.held_out for parts in splits) == 1


def fold_has_rows(rows: list[dict[str, Any]], linked: tuple[tuple[str, str], ...], fold: int) -> bool:
    result = assign_folds(rows, group_rows(rows, linked), PLAN.folds, PLAN.split_seed)
    return any(row["dataset"] == "north" and assigned == fold for row, assigned in zip(rows, result, strict=True))


def test_tested_rows_hold_together(finished: Run) -> None:
    sizes = {"north_00": (96, 96), "north_01": (128, 110), "north_02": (120, 150), "north_03": (200, 180)}
    sizes |= {"north_04": (101, 97), "south_00": (160, 160), "south_01": (99, 140), "south_02": (180, 96)}
    for row in storage.read_table(f"{finished.folder}/tested.parquet").to_pylist():
        height, width = sizes[row["image_id"]]
        assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == height * width  # native size, not 64 px
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert row["sensitivity"] == pytest.approx(row["tp"] / (row["tp"] + row["fn"]))
        assert (row["hd95_px"] is None) == (row["assd_px"] is None) == (row["tp"] + row["fp"] == 0)


def test_run_json_documents_its_metrics(finished: Run) -> None:
    summary = storage.read_json(f"{finished.folder}/run.json")
    assert summary["schema"] == SCHEMA
    assert summary["run"] == finished.name
    assert summary["protocol"] == "source-to-source"
    assert summary["train_on"] == ["north"]
    assert (summary["fold"], summary["folds"], summary["epochs"]) == (0, 5, EPOCHS)
    assert summary["trained_images"] == 4
    assert (summary["best_epoch"], summary["validation_images"]) == (EPOCHS, 0)
    assert (summary["input"], summary["resolution"]) == ("64 px", "native size")
    assert (summary["threshold"], summary["threshold_from"]) == (0.5, "settings")
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


def test_the_checkpoint_explains_the_model(finished: Run) -> None:
    result = checkpoint.find_all(finished.folder)[0]
    assert result.epoch == EPOCHS
    assert result.preprocess == PreprocessSettings(size=64)
    assert result.config["train_on"] == ["north"]
    assert TrainSettings.model_validate(result.config["settings"]) == SETTINGS
    assert (result.config["step"], result.config["trained"]) == (0, True)


def test_progress_counts_every_step_of_every_epoch(folders: tuple[str, ...], tmp_path: Path) -> None:
    shown: list[Progress] = []
    go(a_run(folders, tmp_path, changed(epochs=2)), shown.append)
    steps = [(update.epoch, update.step, update.total_steps) for update in shown if not update.note]
    assert steps == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    notes = [update for update in shown if update.note]
    assert [update.epoch for update in notes] == [1, 2, 2]
    assert "held-out Dice" in notes[0].note
    assert notes[-1].note == "testing"


# Killed and started again


class CrashError(Exception):
    """Simulates the end of the process."""


FROZEN = ComputeSettings(batch_norm="frozen")
KINDS = {
    "plain": changed(epochs=2),
    "within epochs, with a moving average": changed(
        epochs=2, save_steps=1, optim=OptimSettings(lr=5e-3, schedule="cosine", ema_decay=0.9)
    ),
    # Batches of one image: four per epoch, in two steps; a checkpoint follows the first.
    "accumulating": changed(
        epochs=2,
        save_steps=1,
        compute=FROZEN,
        loader=LoaderSettings(batch_size=1, processes=0),
        optim=OptimSettings(lr=5e-3, schedule="cosine", ema_decay=0.9, clip_norm=0.5, accumulate_steps=2),
    ),
    "choosing": changed(epochs=3, patience=1, choose_threshold=True, save_steps=1),
    "by minutes": changed(epochs=2, save_minutes=1e-9, optim=OptimSettings(lr=5e-3, ema_decay=0.9)),
}
Event = tuple[str, ...]


def go_until(run: Run, ends: Callable[[Event], bool]) -> list[Event]:
    """Run until an event at which `ends` is true; events are shown progress, and files about to be written."""
    events: list[Event] = []
    write = storage.write_bytes

    def happens(*event: str) -> None:
        events.append(event)
        if ends(event):
            raise CrashError

    def writing(path: str, content: bytes) -> None:
        lines = str(content.count(b"\n")) if path.endswith(".jsonl") else ""
        if not path.endswith(
            (".safetensors", "state.pt", "trained_on.parquet")
        ):  # config.json is written last and stands for all
            happens(path.removeprefix(run.folder), lines)
        write(path, content)

    torch.manual_seed(len(run.folder))  # as in a new process
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(save_timer, "_CHECK_INTERVAL", 1)
        for module in (storage, storage.json_files, storage.tables):
            patched.setattr(module, "write_bytes", writing)
        try:
            go(run, lambda p: happens("shown", str(p.epoch), str(p.step), p.note.split(" ")[0]))
        except CrashError:
            assert not (Path(run.folder) / "run.json").exists()
            events.append(("killed",))
    return events


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(
    request: pytest.FixtureRequest, folders: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[Event]]:
    """An uninterrupted run of each kind and its events; read-only."""
    run = a_run(folders, tmp_path_factory.mktemp("kinds") / "whole", KINDS[request.param])
    return run, go_until(run, lambda _: False)


def test_run_killed_at_every_event_gives_the_same_result(
    uninterrupted: tuple[Run, list[Event]], tmp_path: Path
) -> None:
    """Each start is killed at the first event at which no earlier start was killed."""
    reference, events = uninterrupted
    run = replace(reference, folder=str(tmp_path))
    killed: set[Event] = set()

    def ends(event: Event) -> bool:
        new = event not in killed
        killed.add(event)
        return new

    while go_until(run, ends)[-1] == ("killed",):
        pass
    assert killed == set(events)
    same_result(run, reference)


def test_checkpoint_is_written_every_save_steps(folders: tuple[str, ...], tmp_path: Path) -> None:
    def saved(name: str, **changes: Any) -> list[str]:
        run = a_run(folders, tmp_path / name, KINDS["accumulating"].model_copy(update=changes))
        return [event[0].split("/")[2] for event in go_until(run, lambda _: False) if event[0].endswith("config.json")]

    assert saved("each") == ["epoch-0000-step-00000002", "epoch-0001", "epoch-0001-step-00000002", "epoch-0002"]
    assert saved("second", save_steps=2) == ["epoch-0001", "epoch-0002"]
    plain = OptimSettings(lr=5e-3)
    assert saved("plain", optim=plain, save_steps=3, epochs=1) == ["epoch-0000-step-00000003", "epoch-0001"]


def test_checkpoint_is_written_when_its_minutes_have_passed(folders: tuple[str, ...], tmp_path: Path) -> None:
    def saved(name: str, **changes: Any) -> list[str]:
        run = a_run(folders, tmp_path / name, changed(epochs=1, save_steps=1000, **changes))
        return [event[0].split("/")[2] for event in go_until(run, lambda _: False) if event[0].endswith("config.json")]

    *within, last = saved("always", save_minutes=1e-9)
    assert within == [f"epoch-0000-step-{step:08d}" for step in range(1, len(within) + 1)] != []
    assert last == "epoch-0001"
    assert saved("later", save_minutes=10.0) == saved("never", save_minutes=0.0) == ["epoch-0001"]
    weights = [checkpoint.find_all(str(tmp_path / name))[0].digest for name in ("always", "later", "never")]
    assert len(set(weights)) == 1


def test_checkpoint_settings_do_not_rename_a_run(folders: tuple[str, ...], tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"save_minutes": 5.0}, {"compute": ComputeSettings(timeout_s=60)}]
    assert len({a_run(folders, tmp_path, changed(**change)).name for change in changes}) == 1


def test_full_disk_ends_the_run(folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is written in a thread, whose error reaches the run."""

    def full(*_: object) -> None:
        raise InputError("state.pt: cannot be written (No space left on device)")

    monkeypatch.setattr(checkpoint_io, "save", full)
    with pytest.raises(InputError, match="No space left"):
        go(a_run(folders, tmp_path, changed(epochs=1)))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("loader", "compute", "remedy"),
    [
        ({"batch_size": 2}, "local", "pass another --model.encoder, or prepare with a smaller --preprocess.size"),
        (
            {"batch_size": 4},
            "local",
            "pass --loader.batch-size 2, and --optim.accumulate-steps 2 to keep the images of a step",
        ),
        ({"global_batch_size": 4}, "frozen", "pass --optim.accumulate-steps 2"),
    ],
)
def test_too_little_gpu_memory_names_the_setting_to_lower(
    loader: dict[str, int],
    compute: Any,
    remedy: str,
    folders: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = changed(loader=LoaderSettings(**loader), compute=ComputeSettings(batch_norm=compute))
    run = a_run(folders, tmp_path, settings)

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(train_step.Learner, "__call__", too_large)
    with pytest.raises(SettingsError) as raised:
        go(run)
    images = 2 if loader == {"batch_size": 2} else 4
    assert str(raised.value) == f"{run.name}: the GPU has too little memory for {images} images a rank: {remedy}"
    assert raised.value.exit_status == 2


def test_run_on_cpus_never_asks_for_a_gpu(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank without a GPU sees those of its node: it must not open a context on one."""

    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("a CPU rank called CUDA")

    # torch's own optimizers ask whether there is a GPU; so a rank without one sees none of its node.
    for name in (
        "current_device",
        "set_device",
        "init",
        "_lazy_init",
        "synchronize",
        "max_memory_allocated",
        "reset_peak_memory_stats",
        "is_bf16_supported",
        "Event",
        "Stream",
    ):
        monkeypatch.setattr(torch.cuda, name, refused)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    settings = changed(epochs=1, optim=OptimSettings(lr=5e-3, ema_decay=0.9, clip_norm=1.0))
    assert go(a_run(folders, tmp_path, settings))["compute_mode"]["device"] == "cpu"


def test_run_record_says_how_it_was_computed(finished: Run) -> None:
    summary, start = (storage.read_json(f"{finished.folder}/{name}.json") for name in ("run", "provenance"))
    assert summary["execution"] == {"batch_norm": "local", "test_precision": "fp32"}
    assert start["starts"][0]["execution"] == summary["execution"]


def test_resuming_within_an_epoch_repeats_no_batch(folders: tuple[str, ...], tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, KINDS["accumulating"])
    go_until(run, lambda event: event[:3] == ("shown", "1", "3"))
    training = run_state.start(run, CPU)
    assert (training.epoch, training.step, training.sums[1]) == (0, 2, 2)
    shown = [event for event in go_until(run, lambda _: False) if event[0] == "shown"]
    assert shown[:3] == [("shown", "1", "3", ""), ("shown", "1", "4", ""), ("shown", "1", "4", "loss")]


def same_result(run: Run, expected: Run) -> None:
    """Compare checkpoints bit by bit, and all metrics except times."""
    result, reference = checkpoint.find_all(run.folder)[0], checkpoint.find_all(expected.folder)[0]
    assert result.config["digests"]["model.safetensors"] == reference.config["digests"]["model.safetensors"]
    same_state(load_state(result), load_state(reference))
    assert {**result.config, "digests": {}} == {**reference.config, "digests": {}}
    assert metrics_of(run) == metrics_of(expected)
    tables = [storage.read_table(f"{item.folder}/tested.parquet") for item in (run, expected)]
    assert tables[0].equals(tables[1])
    reports = [storage.read_json(f"{item.folder}/run.json") for item in (run, expected)]
    assert reports[0] == reports[1]


def same_state(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            same_state(first[name], second[name])
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_finished_run_is_not_trained_again(finished: Run) -> None:
    files = [path for path in Path(finished.folder).rglob("*") if path.is_file() and path.stem != "provenance"]
    before = {path: path.read_bytes() for path in files}
    shown: list[Progress] = []
    again = go(finished, shown.append)
    assert [update.note for update in shown] == ["testing"]
    assert shown[0].epoch == EPOCHS
    assert {path: path.read_bytes() for path in files} == before
    assert json.loads(json.dumps(again))["tested"] == storage.read_json(f"{finished.folder}/run.json")["tested"]


def test_damaged_checkpoint_is_not_resumed(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path)
    assert go_until(run, lambda event: event[:3] == ("shown", "2", "1"))[-1] == ("killed",)
    weights = tmp_path / "checkpoint" / "epoch-0001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    go(run)  # starts from the beginning
    same_result(run, finished)


def test_resumed_run_keeps_threads_and_refuses_another_device(folders: tuple[str, ...], tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, changed(epochs=1))
    go(run)
    (config,) = tmp_path.glob("checkpoint/*/config.json")
    content = json.loads(config.read_text())
    assert content["compute_mode"] == {"device": "cpu", "precision": "fp32", "threads": 1}
    config.write_text(json.dumps({**content, "compute_mode": {**content["compute_mode"], "threads": 2}}))
    run_state.start(run, CPU)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    config.write_text(json.dumps({**content, "compute_mode": {"device": "cuda", "precision": "bf16", "threads": 1}}))
    with pytest.raises(SettingsError, match=r"started on cuda in bf16 and cannot continue on cpu in fp32: wait for"):
        run_state.start(run, CPU)


def test_adapted_model_is_not_trained_further(folders: tuple[str, ...], tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, changed(epochs=1))
    go(run)
    (config,) = tmp_path.glob("checkpoint/*/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "adapted_to": {"model": "0" * 16}}))
    with pytest.raises(SettingsError, match="was adapted and cannot be trained on"):
        run_state.start(run, CPU)


def test_another_seed_is_another_model(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, changed(seed=4))  # the split stays the same
    go(run)
    assert checkpoint.find_all(run.folder)[0].digest != checkpoint.find_all(finished.folder)[0].digest


def test_each_fold_draws_its_own_random_numbers(folders: tuple[str, ...], tmp_path: Path) -> None:
    first, second = (a_run(folders, tmp_path, plan=replace(PLAN, fold=fold)) for fold in (0, 1))
    assert first.random_seed == SETTINGS.seed
    seeds = {replace(second, settings=changed(seed=seed)).random_seed for seed in range(100)}
    assert len(seeds) == 100
    assert not seeds & set(range(100))
    weights = [next(run_state.start(run, CPU).learner.eval_model.parameters()) for run in (first, second)]
    assert not torch.equal(*weights)


def prepare(records: list[Any], out: Path, size: int = 64) -> tuple[str, ...]:
    dataset_writer.write_datasets(plan_shards(records, str(out), PreprocessSettings(size=size), 8))
    return tuple(catalog.find_datasets([str(out)]))


def test_image_without_a_mask_is_not_used(archive: Path, tmp_path: Path) -> None:
    records = sources.discover(str(archive / "north"), "north")
    rows = [{**asdict(record), "pixel_digest": record.image_id} for record in records]
    parts = split(rows, PLAN)
    records[parts.train[0]] = replace(records[parts.train[0]], mask_uris=(), mask_classes=())
    run = a_run(prepare(records, tmp_path / "data"), tmp_path / "run", changed(epochs=1))
    assert go(run)["trained_images"] == len(parts.train) - 1
    trained_on = storage.read_table(f"{run.folder}/checkpoint/epoch-0001/trained_on.parquet").column("image_id")
    tested = storage.read_table(f"{run.folder}/tested.parquet").column("image_id")
    all_ids = {record.image_id for record in records}
    assert {*trained_on.to_pylist(), *tested.to_pylist()} == all_ids - {records[parts.train[0]].image_id}


def test_too_few_images_for_the_workers_are_refused(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(folders, tmp_path)
    monkeypatch.setattr(run_state, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(SettingsError, match="4 training images, 6 needed for 3 workers: lower --workers-per-run"):
        run_state.start(run, CPU)


def test_empty_fold_is_refused(folders: tuple[str, ...], tmp_path: Path) -> None:
    plan = replace(PLAN, folds=1000)
    with pytest.raises(SettingsError, match=r"the held-out subset has none of 5 images.*lower --folds \(now 1000\)"):
        run_state.start(a_run(folders, tmp_path, plan=plan), CPU)
    assert not (tmp_path / "checkpoint").exists()


# Choices by the validation fold


class ByGrey(nn.Module):
    """Predicts lung for dark pixels; the probability 0.5 is far darker than the edge of the lungs."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(12.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.slope * (0.1 - images)


def set_validation_dice(dice: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the validation Dice of each epoch."""
    left, mean_metrics = iter(dice), run_loop.mean_metrics
    monkeypatch.setattr(run_loop, "mean_metrics", lambda rows: {**mean_metrics(rows), "dice": next(left)})


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_early_stopping_tests_the_best_epoch(
    ema_decay: float, folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_validation_dice([0.5, 0.6, 0.55, 0.6, 0.59, 0.9], monkeypatch)  # an equal value is not better
    settings = changed(epochs=9, patience=3, optim=OptimSettings(lr=5e-3, ema_decay=ema_decay), save_steps=1)
    training = run_state.start(a_run(folders, tmp_path, settings), CPU)
    weights: list[dict[str, Tensor]] = []

    def show(progress: Progress) -> None:
        if progress.note.startswith("loss") and not training.trained:
            weights.append({name: value.clone() for name, value in training.learner.eval_model.state_dict().items()})

    summary = run_loop.finish(training, show)
    assert (summary["epochs"], summary["best_epoch"]) == (5, 2)
    assert [row["epoch"] for row in metrics_of(training.run)] == [1, 2, 3, 4, 5]
    result = load_weights(checkpoint.find_all(str(tmp_path))[0])
    same_state(dict(result), weights[1])
    assert not torch.equal(result["net.segmentation_head.0.weight"], weights[2]["net.segmentation_head.0.weight"])
    assert checkpoint.find_all(str(tmp_path))[0].config["trained"] is True


def test_best_epoch_is_tested_without_an_early_stop(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_validation_dice([0.7, 0.6, 0.5], monkeypatch)
    summary = go(a_run(folders, tmp_path, changed(patience=9)))
    assert (summary["epochs"], summary["best_epoch"]) == (EPOCHS, 1)


def test_validation_fold_is_not_trained_or_tested_on(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: set[str] = set()
    make_transform = run_loop.make_transform

    def record(*args: Any) -> Any:
        change = make_transform(*args)
        return lambda sample: trained_on.add(sample.image_id) or change(sample)

    monkeypatch.setattr(run_loop, "make_transform", record)
    run = a_run(folders, tmp_path, changed(patience=1, choose_threshold=True))
    training = run_state.start(run, CPU)
    train, held_out, cross, validation = (
        {training.reader.rows[i]["image_id"] for i in part}
        for part in (
            training.split.train,
            training.split.held_out,
            training.split.cross,
            training.split.validation,
        )
    )
    summary = run_loop.finish(training, ignore_progress)
    tested = set(storage.read_table(f"{run.folder}/tested.parquet").column("image_id").to_pylist())
    assert (len(train), len(held_out), len(cross), len(validation)) == (3, 1, 3, 1)
    assert trained_on == train
    assert tested == held_out | cross
    assert not validation & (train | tested)
    # Validation images count as trained on, because they select the epoch and the threshold.
    folder = checkpoint.find_all(run.folder)[0].folder
    seen = set(storage.read_table(f"{folder}/trained_on.parquet").column("image_id").to_pylist())
    assert seen == train | validation
    assert (summary["trained_images"], summary["validation_images"]) == (3, 1)
    rows = metrics_of(run)
    assert all(row["validation_images"] == 1 and "held_out_dice" not in row for row in rows)


def test_threshold_is_selected_on_the_validation_fold(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "build_network", lambda _, classes: ByGrey())  # noqa: ARG005
    still = changed(epochs=1, optim=OptimSettings(lr=1e-12))
    fixed = go(a_run(folders, tmp_path / "fixed", still.model_copy(update={"patience": 1})))
    run = a_run(folders, tmp_path / "chosen", still.model_copy(update={"choose_threshold": True}))
    chosen = go(run)
    assert (fixed["threshold"], fixed["threshold_from"]) == (0.5, "settings")
    assert 0.0 < chosen["threshold"] < 0.4
    assert chosen["threshold_from"] == "validation fold"
    assert storage.read_json(f"{run.folder}/run.json")["threshold"] == chosen["threshold"]
    for better, worse in zip(chosen["tested"], fixed["tested"], strict=True):
        assert better["dice"] > worse["dice"] + 0.1
    assert metrics_of(run)[0]["validation_dice"] < 0.8  # validation uses the threshold of the settings


# Losses, rates and precision of a run


def test_run_on_all_images_is_not_tested(folders: tuple[str, ...], tmp_path: Path) -> None:
    settings = changed(epochs=1)
    run = a_run(folders, tmp_path, settings, RunPlan("all", ("north", "south"), fold=0, folds=5, split_seed=3))
    summary = go(run)
    assert summary["trained_images"] == len(index_rows(run)) == 8
    assert summary["tested"] == []
    (line,) = metrics_of(run)
    assert line["held_out_images"] == 0
    assert "held_out_dice" not in line


def test_first_epochs_may_train_at_half_size(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    call = Learner.__call__

    def record_size(learner: Learner, batch: Batch, rate: float) -> Tensor:
        sizes.append(batch.images.shape[-1])
        return call(learner, batch, rate)

    monkeypatch.setattr(Learner, "__call__", record_size)
    go(a_run(folders, tmp_path, changed(half_size_epochs=1, epochs=2)))
    assert sizes == [32, 32, 64, 64]


def test_a_balanced_epoch_has_equally_many_images_of_each_dataset(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, str]] = []
    call = Learner.__call__

    def record_images(learner: Learner, batch: Batch, rate: float) -> Tensor:
        used.extend((sample.dataset, sample.image_id) for sample in batch.samples)
        return call(learner, batch, rate)

    monkeypatch.setattr(Learner, "__call__", record_images)
    plan = RunPlan("pooled", ("north", "south"), fold=2, folds=3, split_seed=3)
    settings = changed(balance_datasets=True, epochs=6)
    run, killed = (a_run(folders, tmp_path / name, settings, plan) for name in ("whole", "killed"))
    training = run_state.start(run, CPU)
    counts = Counter(row["dataset"] for row in training.index.rows.take(training.split.train).to_pylist())
    assert counts["north"] > counts["south"] == 2
    go(run)
    epochs = [used[start : start + 4] for start in range(0, len(used), 4)]
    assert [Counter(dataset for dataset, _ in epoch) for epoch in epochs] == [{"north": 2, "south": 2}] * 6
    assert len({frozenset(epoch) for epoch in epochs}) > 1
    go_until(killed, lambda event: event[:3] == ("shown", "3", "1"))
    go(killed)
    same_result(killed, run)


def test_infinite_loss_ends_the_run_with_its_rate(folders: tuple[str, ...], tmp_path: Path) -> None:
    settings = changed(optim=OptimSettings(lr=10.0), epochs=50, augment=AugmentSettings(), compute=FROZEN)
    run = a_run(folders, tmp_path, settings)
    training = run_state.start(run, CPU)
    with torch.no_grad():
        training.learner.model.net.segmentation_head[0].bias.fill_(torch.nan)  # type: ignore[union-attr,index]
    with pytest.raises(LungsegError, match=r"the loss became nan: lower --optim\.lr \(now 10\), and check the masks"):
        run_loop.finish(training, ignore_progress)
    assert not (tmp_path / "checkpoint").exists()


def test_each_image_size_has_its_own_learning_rates(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    call = Learner.__call__

    def record_rate(learner: Learner, batch: Batch, rate: float) -> Tensor:
        rates.append(rate)
        return call(learner, batch, rate)

    monkeypatch.setattr(Learner, "__call__", record_rate)
    optim = OptimSettings(schedule="one-cycle")
    go(a_run(folders, tmp_path, changed(half_size_epochs=2, epochs=3, optim=optim)))
    expected = [learning_rate(step, 4, optim) for step in range(4)] + [
        learning_rate(step, 2, optim) for step in range(2)
    ]
    assert rates == pytest.approx(expected)


def test_batches_get_scheduled_rates_and_distinct_seeds(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_rates: list[float] = []
    used_seeds: list[int] = []
    train_batches = run_loop.train_batches

    def record(learner: Any, batches: Any, rates: Any, seeds: Any, report: Any) -> tuple[float, int]:
        new_rates, new_seeds = list(rates), list(seeds)
        used_rates.extend(new_rates)
        used_seeds.extend(new_seeds)
        return train_batches(learner, batches, new_rates, new_seeds, report)

    monkeypatch.setattr(run_loop, "train_batches", record)
    run = a_run(folders, tmp_path, KINDS["accumulating"])
    go(run)
    assert len(used_seeds) == len(set(used_seeds)) == 8  # four batches per epoch
    expected = [learning_rate(step, 4, run.settings.optim) for step in range(4)]
    assert used_rates == [rate for rate in expected for _ in range(2)]  # two batches per step


@pytest.mark.parametrize("enabled", [False, True])
def test_deterministic_mode_ends_with_the_run(
    enabled: bool, folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # restored after the test
    result: set[bool] = set()
    run = a_run(folders, tmp_path, changed(epochs=1, compute=ComputeSettings(deterministic=enabled)))
    go(run, lambda _: result.add(torch.are_deterministic_algorithms_enabled()))
    assert result == {enabled}
    assert not torch.are_deterministic_algorithms_enabled()


def test_bf16_run_is_evaluated_in_fp32(folders: tuple[str, ...], tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, changed(epochs=1, compute=ComputeSettings(precision="bf16")))
    training = run_state.start(run, CPU)
    seen: set[torch.dtype] = set()
    training.learner.model.register_forward_hook(lambda model, _, out: None if model.training else seen.add(out.dtype))
    run_loop.finish(training, ignore_progress)
    assert seen == {torch.float32}


def test_curves_of_other_hospitals_change_nothing_else(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path / "run", changed(test_every=2))
    assert run.name == finished.name
    notes: list[Progress] = []
    go(run, notes.append)
    assert checkpoint.find_all(run.folder)[0].digest == checkpoint.find_all(finished.folder)[0].digest
    rows, plain = metrics_of(run), metrics_of(finished)
    assert [("cross_dice_south" in row) for row in rows] == [(row["epoch"] % 2 == 0) for row in rows]
    assert [{name: row[name] for name in row if not name.startswith("cross_")} for row in rows] == plain
    assert all(0.0 <= row["cross_dice_south"] <= 1.0 for row in rows if row["epoch"] % 2 == 0)
    assert [", cross Dice south 0." in progress.note for progress in notes if progress.note.startswith("loss")] == [
        row["epoch"] % 2 == 0 for row in rows
    ]


def test_curves_cover_the_held_out_fold_beside_a_validation_fold(folders: tuple[str, ...], tmp_path: Path) -> None:
    weights = set()
    for every in (0, 1):
        run = a_run(folders, tmp_path / str(every), changed(test_every=every, patience=1))
        go(run)
        weights.add(checkpoint.find_all(run.folder)[0].digest)
        assert all(("held_out_dice" in row) == bool(every) for row in metrics_of(run))
        assert all("validation_dice" in row for row in metrics_of(run))
    assert len(weights) == 1


def loader_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "loader_process" in title(child)]


def test_a_run_that_lost_a_loader_process_resumes_to_the_same_weights(
    finished: Run, folders: tuple[str, ...], tmp_path: Path
) -> None:
    settings = changed(loader=LoaderSettings(batch_size=2, processes=2))
    run = a_run(folders, tmp_path, settings)

    def kill_a_process(progress: Progress) -> None:
        if progress.epoch == 2:
            kill(loader_processes())

    with pytest.raises(ResourceError, match="a process that loads training images was killed"):
        go(run, kill_a_process)
    assert checkpoint.find_all(str(tmp_path))[0].epoch < EPOCHS
    go(run)
    assert run.name == finished.name
    assert metrics_of(run) == metrics_of(finished)
    same_state(*(dict(load_weights(checkpoint.find_all(each.folder)[0])) for each in (run, finished)))
    assert not loader_processes()
