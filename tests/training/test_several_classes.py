"""Runs of several classes, of datasets that annotate different ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg import storage
from lungseg.config import (
    AugmentSettings,
    LoaderSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    TrainSettings,
)
from lungseg.dataset import catalog
from lungseg.dataset.folds import RunPlan
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import InputError, SettingsError
from lungseg.imaging import phantom
from lungseg.inference.model_selection import find_models
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint_classes import stored_thresholds
from lungseg.model.checkpoint_io import load_model
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import is_annotated
from lungseg.study.study_plan import index_of, plan_runs, require_feasible
from lungseg.training import run_loop, run_state
from lungseg.training.run import Run, name_run
from lungseg.training.study_classes import describe_classes, study_classes
from lungseg.training.study_data import open_training_data

CPU = torch.device("cpu")
CLASSES = ("right_lung", "left_lung", "heart", "opacity")
LUNGS_ONLY, ALL = "phantom-montgomery", "phantom-shenzhen"
SETTINGS = TrainSettings(
    folds=2,
    epochs=1,
    model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
    optim=OptimSettings(lr=5e-3),
    augment=AugmentSettings(flip=0.5, rotate_deg=5.0, opacity=0.5, gas=0.5),
    loader=LoaderSettings(batch_size=2, processes=0),
    wandb={"mode": "disabled"},  # type: ignore[arg-type]
)
POOLED = RunPlan("pooled", (LUNGS_ONLY, ALL), fold=0, folds=2, split_seed=0)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms in each of two styles; one style has masks of the lungs only."""
    folder = tmp_path_factory.mktemp("archive")
    phantom.write_archive(folder, 4, size=128, classes=("heart", "opacity"))
    for name in ("heart", "opacity"):
        shutil.rmtree(folder / LUNGS_ONLY / f"{name}_masks")
    return folder


def prepare(archive: Path, out: Path, classes: tuple[str, ...] = CLASSES, dataset: str = "") -> tuple[str, ...]:
    records = sources.discover(str(archive), dataset, classes)
    preprocess = PreprocessSettings(size=64, classes=classes)
    dataset_writer.write_datasets(plan_shards(records, str(out), preprocess, 8))
    return tuple(catalog.find_datasets([str(out)]))


@pytest.fixture(scope="module")
def folders(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return prepare(archive, tmp_path_factory.mktemp("prepared"))


def changed(**changes: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=changes)


def a_run(folders: tuple[str, ...], folder: Path, settings: TrainSettings = SETTINGS, plan: RunPlan = POOLED) -> Run:
    plan = replace(plan, validates=settings.validates)
    return Run(settings, plan, folders, name_run(settings, plan, open_training_data(folders)), str(folder))


def go(run: Run) -> dict[str, Any]:
    return run_loop.finish(run_state.start(run, CPU), lambda _: None)


@pytest.fixture(scope="module")
def finished(folders: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run; read-only."""
    run = a_run(folders, tmp_path_factory.mktemp("runs") / "pooled")
    go(run)
    return run


def rows_of(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = storage.read_table(str(Path(run.folder) / "tested.parquet")).to_pylist()
    return rows


def weights_of(run: Run) -> bytes:
    (path,) = Path(run.folder).glob("checkpoint/*/model.safetensors")
    return path.read_bytes()


def test_dataset_records_the_classes_that_it_annotates(folders: tuple[str, ...]) -> None:
    lungs_only, everything = open_training_data(folders)
    assert lungs_only.annotated == ("right_lung", "left_lung")
    assert everything.annotated == CLASSES
    assert ("left_lung", "heart") in everything.overlaps
    assert study_classes([lungs_only, everything]) == CLASSES


def test_the_log_says_which_datasets_have_which_classes(folders: tuple[str, ...]) -> None:
    lungs_only, everything = open_training_data(folders)
    assert describe_classes([lungs_only, everything]) == (
        f"right_lung, left_lung in {lungs_only.name}, {everything.name}; heart, opacity in {everything.name}"
    )


def test_datasets_without_masks_are_not_described(folders: tuple[str, ...]) -> None:
    lungs_only, everything = open_training_data(folders)
    column = lungs_only.index.schema.get_field_index("mask_size")
    unmasked = lungs_only.index.set_column(column, "mask_size", [[0] * lungs_only.index.num_rows])
    assert lungs_only.name not in describe_classes([replace(lungs_only, index=unmasked), everything])


def test_sample_knows_what_is_not_annotated(folders: tuple[str, ...]) -> None:
    reader = SampleReader(open_training_data(folders))
    known = [
        [is_annotated(mask) for mask in sample.masks] for sample in map(reader.read, (0, 4)) if sample.masks is not None
    ]
    assert known == [[True, True, False, False], [True, True, True, True]]


def test_only_annotated_classes_are_tested(finished: Run) -> None:
    rows = rows_of(finished)
    classes = {(row["dataset"], row["class"]) for row in rows}
    assert classes == {(LUNGS_ONLY, "right_lung"), (LUNGS_ONLY, "left_lung"), *((ALL, name) for name in CLASSES)}
    keys = [(row["dataset"], row["image_id"], row["class"]) for row in rows]
    assert len(set(keys)) == len(keys)


def test_metrics_of_an_epoch_name_each_class(finished: Run) -> None:
    (line,) = map(json.loads, (Path(finished.folder) / "metrics.jsonl").read_text().splitlines())
    by_class = [line[f"held_out_dice_{name}"] for name in CLASSES]
    assert line["held_out_dice"] == pytest.approx(np.mean(by_class))


def test_checkpoint_has_one_output_for_each_class(finished: Run) -> None:
    (model,) = checkpoint.find_all(finished.folder)
    assert model.preprocess.classes == CLASSES
    logits = load_model(model).eval()(torch.zeros(1, 1, 64, 64))
    assert logits.shape == (1, len(CLASSES), 64, 64)
    assert stored_thresholds(model) == dict.fromkeys(CLASSES, 0.5)


def test_inference_finds_the_model_of_a_run(finished: Run) -> None:
    (model,) = find_models([finished.folder])
    assert model.preprocess.classes == CLASSES


def test_loader_processes_change_no_bit(folders: tuple[str, ...], finished: Run, tmp_path: Path) -> None:
    run = a_run(folders, tmp_path, changed(loader=LoaderSettings(batch_size=2, processes=1)))
    assert run.name == finished.name
    go(run)
    assert weights_of(run) == weights_of(finished)
    timeless = [{**row, "run": ""} for row in rows_of(run)]
    assert timeless == [{**row, "run": ""} for row in rows_of(finished)]


def test_run_learns_the_classes_of_its_training_data(folders: tuple[str, ...], tmp_path: Path) -> None:
    plan = RunPlan("source-to-source", (LUNGS_ONLY,), fold=0, folds=2, split_seed=0)
    run = a_run(folders, tmp_path, plan=plan)
    go(run)
    (model,) = checkpoint.find_all(run.folder)
    assert model.preprocess.classes == ("right_lung", "left_lung")
    assert {(row["role"], row["class"]) for row in rows_of(run)} == {
        (role, name) for role in ("held-out", "cross") for name in ("right_lung", "left_lung")
    }


def test_thresholds_are_chosen_for_each_class(folders: tuple[str, ...], tmp_path: Path) -> None:
    plan = replace(POOLED, folds=4)
    run = a_run(folders, tmp_path, changed(folds=4, choose_threshold=True), plan)
    thresholds = go(run)["thresholds"]
    assert list(thresholds) == list(CLASSES)
    assert stored_thresholds(checkpoint.find_all(run.folder)[0]) == thresholds


def test_softmax_gives_each_pixel_one_class(archive: Path, tmp_path: Path) -> None:
    lungs = ("right_lung", "left_lung")
    folders = prepare(archive, tmp_path / "lungs", lungs)
    run = a_run(folders, tmp_path / "run", changed(model=SETTINGS.model.model_copy(update={"activation": "softmax"})))
    go(run)
    logits = load_model(checkpoint.find_all(run.folder)[0]).eval()(torch.rand(2, 1, 64, 64))
    assert (torch.sigmoid(logits).sum(dim=1) <= 1 + 1e-5).all()


def refused(settings: TrainSettings, folders: tuple[str, ...]) -> None:
    data = open_training_data(folders, settings)
    require_feasible(
        settings.model_copy(update={"workers_per_run": 1}), index_of(settings, data), plan_runs(settings, data)
    )


def test_balance_where_each_run_trains_on_one_dataset_is_refused(folders: tuple[str, ...]) -> None:
    balanced = changed(balance_datasets=True, protocols=("source-to-source",))
    with pytest.raises(SettingsError, match="--balance-datasets: every run trains on one dataset"):
        refused(balanced, folders)
    refused(balanced.model_copy(update={"protocols": ("pooled",)}), folders)


def test_softmax_with_overlapping_classes_is_refused(folders: tuple[str, ...]) -> None:
    softmax = changed(model=SETTINGS.model.model_copy(update={"activation": "softmax"}))
    with pytest.raises(SettingsError, match=r"softmax: .* and .* overlap in .*phantom-shenzhen"):
        refused(softmax, folders)


def test_softmax_of_one_class_is_refused(archive: Path, tmp_path: Path) -> None:
    softmax = changed(model=SETTINGS.model.model_copy(update={"activation": "softmax"}))
    with pytest.raises(SettingsError, match="softmax needs several classes"):
        refused(softmax, prepare(archive, tmp_path, ("lung",)))


def test_flip_without_the_other_side_is_refused(archive: Path, tmp_path: Path) -> None:
    folders = prepare(archive, tmp_path, ("right_lung", "heart"))
    with pytest.raises(SettingsError, match=r"--augment\.flip 0\.5: .*right_lung has no partner among"):
        refused(SETTINGS, folders)
    refused(changed(augment=AugmentSettings()), folders)


def test_class_that_nobody_annotates_is_refused(archive: Path, tmp_path: Path) -> None:
    folders = prepare(archive, tmp_path, ("lung", "clavicle"))
    with pytest.raises(InputError, match="no image has a mask of clavicle: prepare without"):
        open_training_data(folders)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("lung",), ("right_lung", "left_lung")), (("lung", "heart"), ("lung", "hearts"))],
)
def test_one_structure_under_two_names_is_refused(
    archive: Path, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    folders = (
        *prepare(archive / ALL, tmp_path / "first", first, "one"),
        *prepare(archive / ALL, tmp_path / "second", second, "two"),
    )
    with pytest.raises(InputError, match="which name the same: prepare both with the same"):
        open_training_data(folders)


def test_order_of_the_classes_may_differ(archive: Path, tmp_path: Path) -> None:
    folders = (
        *prepare(archive / ALL, tmp_path / "first", ("heart", "right_lung", "left_lung"), "one"),
        *prepare(archive / ALL, tmp_path / "second", ("left_lung", "right_lung"), "two"),
    )
    data = open_training_data(folders)
    first, second = (SampleReader([part], classes=study_classes(data)).read(0).masks for part in data)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first[1:], second[1:])
    assert not is_annotated(second[0])


def test_classes_of_two_datasets_are_joined(archive: Path, tmp_path: Path) -> None:
    folders = (
        *prepare(archive / ALL, tmp_path / "first", ("lung", "heart"), "one"),
        *prepare(archive / ALL, tmp_path / "second", ("opacity", "lung"), "two"),
    )
    data = open_training_data(folders)
    assert study_classes(data) == ("lung", "heart", "opacity")
    sample = SampleReader(data, classes=study_classes(data)).read(4)
    assert sample.masks is not None
    assert [is_annotated(mask) for mask in sample.masks] == [True, False, True]
