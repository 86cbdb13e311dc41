"""The data of a study: prepared with the same settings, with masks, and enough for every rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lungseg.config import PreprocessSettings, TrainSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, SettingsError
from lungseg.ingest import sources
from lungseg.plurals import counted
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.training import study_data


@pytest.fixture(scope="module")
def folders(prepared: Path) -> tuple[str, ...]:
    return str(prepared / "north"), str(prepared / "south")


def prepare(records: list[Any], out: Path, size: int = 64) -> tuple[str, ...]:
    dataset_writer.write_datasets(plan_shards(records, str(out), PreprocessSettings(size=size), 8))
    return tuple(catalog.find_datasets([str(out)]))


def test_datasets_keep_the_given_order(folders: tuple[str, ...]) -> None:
    data = study_data.open_training_data(folders[::-1])
    assert [(part.name, part.index.num_rows) for part in data] == [("south", 3), ("north", 5)]


def test_dataset_without_masks_is_refused(archive: Path, tmp_path: Path) -> None:
    maskless = prepare(sources.pair_folders(str(archive / "south" / "images"), "", "maskless"), tmp_path)
    with pytest.raises(InputError, match="maskless: none of 3 images has a mask: training needs masks"):
        study_data.open_training_data(maskless)


def test_images_without_a_mask_are_logged_and_skipped(
    archive: Path, folders: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = sources.discover(str(archive / "south"), "mixed")
    records[1] = replace(records[1], mask_uris=(), mask_classes=())
    mixed = prepare(records, tmp_path)
    maskless = prepare(sources.pair_folders(str(archive / "south" / "images"), "", "maskless"), tmp_path / "other")
    data = study_data.open_training_data([folders[0], *mixed, *maskless])
    assert [(part.name, part.index.num_rows) for part in data] == [("north", 5), ("mixed", 2)]
    assert records[1].image_id not in data[1].index.column("image_id").to_pylist()
    assert "mixed: 1 of 3 images has no mask" in caplog.text
    assert "maskless: 3 of 3 images have no mask" in caplog.text


def test_data_prepared_differently_cannot_be_mixed(archive: Path, folders: tuple[str, ...], tmp_path: Path) -> None:
    records = sources.discover(str(archive / "south"), "south")
    with pytest.raises(InputError, match="prepare both with the same") as caught:
        study_data.open_training_data([folders[0], *prepare(records, tmp_path, size=80)])
    assert "(found --preprocess.size 80, expected 64)" in str(caught.value)


def test_two_datasets_of_one_name_are_refused(archive: Path, folders: tuple[str, ...], tmp_path: Path) -> None:
    again = prepare(sources.discover(str(archive / "south"), "north"), tmp_path)
    with pytest.raises(InputError, match=f"datasets named north: {folders[0]}, {again[0]}: prepare them with own"):
        study_data.open_training_data([folders[0], *again])


@pytest.mark.parametrize(
    ("images", "workers", "least", "refused"),
    [(6, 3, 2, False), (5, 3, 2, True), (3, 3, 1, False), (2, 3, 1, True), (2, 1, 2, False), (1, 1, 2, True)],
)
def test_every_rank_needs_min_batch_size_images(images: int, workers: int, least: int, refused: bool) -> None:
    if not refused:
        study_data.require_enough_images(images, "run", workers, least)
        return
    message = (
        f"run: {counted(images, 'training image')}, {least * workers} needed for {counted(workers, 'worker')}: "
        "lower --workers-per-run"
    )
    with pytest.raises(SettingsError, match=message):
        study_data.require_enough_images(images, "run", workers, least)


def test_images_that_cannot_be_halved_are_refused(archive: Path, tmp_path: Path) -> None:
    folders = prepare(sources.discover(str(archive / "north")), tmp_path, size=80)
    study_data.open_training_data(folders, TrainSettings())
    with pytest.raises(SettingsError, match="images of 80 px, but half the size must be a multiple of 16"):
        study_data.open_training_data(folders, TrainSettings(half_size_epochs=1))
