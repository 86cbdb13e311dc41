"""Samples by position: the right one or an error that names the tar, decoded once while there is room."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg.dataset import catalog, shard_format
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import ShardError


def opened(folder: Path) -> list[PreparedDataset]:
    return [catalog.open_dataset(one) for one in catalog.find_datasets([str(folder)])]


def test_every_position_gives_its_rows_sample(prepared: Path) -> None:
    reader = SampleReader(opened(prepared))
    samples = [reader.read(position) for position in range(len(reader.rows))]
    assert [(one.dataset, one.image_id) for one in samples] == [
        (row["dataset"], row["image_id"]) for row in reader.rows
    ]
    assert len(samples) == 8


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_a_sample_that_is_kept_is_not_read_again(cache_mib: int, own_prepared: Path) -> None:
    reader = SampleReader(opened(own_prepared), cache_mib)
    first = reader.read(2)
    assert (reader.read(2) is first) == bool(cache_mib)
    np.testing.assert_array_equal(reader.read(2).image, first.image)


def test_a_flipped_byte_is_refused_with_its_tar_and_sample(own_prepared: Path) -> None:
    data = opened(own_prepared)
    row = data[0].index.to_pylist()[1]
    path = own_prepared / "north" / f"{row['shard']}.tar"
    whole = bytearray(path.read_bytes())
    whole[shard_format.member_ranges(row)["image"][0] + 100] ^= 1
    path.write_bytes(bytes(whole))
    reader = SampleReader(data)
    reader.read(0)
    with pytest.raises(ShardError, match=rf"{row['shard']}\.tar \({row['image_id']}\): the image of"):
        reader.read(1)


def test_a_row_that_names_another_sample_is_refused(prepared: Path) -> None:
    data = opened(prepared)[0]
    names = data.index.column("image_id").to_pylist()
    swapped = data.index.set_column(0, data.index.schema.field(0), pa.array([names[1], names[0], *names[2:]]))
    reader = SampleReader([PreparedDataset(data.folder, data.name, data.preprocess, swapped, data.digest)])
    with pytest.raises(ShardError, match=r"north-000000\.tar: north_00 where the index has north_01"):
        reader.read(0)
