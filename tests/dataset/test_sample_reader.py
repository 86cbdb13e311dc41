"""Samples are read by position and cached; every stage refuses a damaged tar with the same error."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, shard_format
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import ShardError
from lungseg.inference.items import open_item, prepared_item
from lungseg.ingest import sources
from lungseg.predictions import overlays
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.result_columns import PREDICTIONS
from lungseg.training import loader


def opened(folder: Path) -> list[PreparedDataset]:
    return [catalog.open_dataset(dataset) for dataset in catalog.find_datasets([str(folder)])]


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_each_position_returns_the_sample_of_its_row(prepared: Path) -> None:
    reader = SampleReader(opened(prepared))
    samples = [reader.read(position) for position in range(len(reader.rows))]
    assert [(sample.dataset, sample.image_id) for sample in samples] == [
        (row["dataset"], row["image_id"]) for row in reader.rows
    ]
    assert len(samples) == 8


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_a_cached_sample_is_not_read_again(cache_mib: int, own_prepared: Path) -> None:
    reader = SampleReader(opened(own_prepared), cache_mib)
    first = reader.read(2)
    assert (reader.read(2) is first) == bool(cache_mib)
    np.testing.assert_array_equal(reader.read(2).image, first.image)


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_a_damaged_member_is_refused_by_name(member: str, own_prepared: Path) -> None:
    data = opened(own_prepared)
    row = data[0].index.to_pylist()[1]
    path = own_prepared / "north" / f"{row['shard']}.tar"
    offset, size = shard_format.member_ranges(row)[member]
    flip_bit(path, offset + size // 2)
    reader = SampleReader(data)
    reader.read(0)
    with pytest.raises(ShardError) as refused:
        reader.read(1)
    assert str(refused.value) == (
        f"{path}#{row['image_id']}: the {member} is damaged (wrong checksum): run lungseg prepare again"
    )


def test_every_stage_refuses_a_damaged_tar_alike(own_archive: Path, tmp_path: Path) -> None:
    images = own_archive / "north" / "images"
    cv2.imwrite(str(images / "north_91.jpg"), cv2.imread(str(images / "north_01.png"), cv2.IMREAD_UNCHANGED))
    settings = PreprocessSettings(size=128)
    dataset_writer.write_datasets(plan_shards(sources.discover(str(own_archive / "north")), str(tmp_path), settings, 8))
    (data,) = opened(tmp_path)
    position, row = next((i, row) for i, row in enumerate(data.index.to_pylist()) if row["image_id"] == "north_01")
    tar = tmp_path / "north" / f"{row['shard']}.tar"
    flip_bit(tar, shard_format.member_ranges(row)["image"][0] + 100)
    message = f"{tar}#north_01: the image is damaged (wrong checksum): run lungseg prepare again"

    with pytest.raises(ShardError) as refused:
        list(loader.load_batches(SampleReader([data]), [loader.Step((position,), 1)], 1))
    assert str(refused.value) == message

    with pytest.raises(ShardError) as refused:
        audit_datasets([data])
    assert str(refused.value) == message

    item = prepared_item(data.folder, row)
    record = open_item(item, settings).record
    assert record.status == "failed"
    assert message in record.message

    ids = {"image_id": "north_01", "dataset": "north", "source_uri": item.record.image_uri}
    prediction = {**dict.fromkeys(PREDICTIONS.names), **ids, "dice": 0.9}
    assert overlays.draw_case(prediction, "worst", "unseen").note == message


def test_a_row_that_points_at_another_sample_is_refused(prepared: Path) -> None:
    data = opened(prepared)[0]
    names = data.index.column("image_id").to_pylist()
    swapped = data.index.set_column(0, data.index.schema.field(0), pa.array([names[1], names[0], *names[2:]]))
    reader = SampleReader([PreparedDataset(data.folder, data.name, data.preprocess, swapped, data.digest)])
    with pytest.raises(ShardError, match=r"tar holds north/north_00 there, the index expects north/north_01"):
        reader.read(0)
