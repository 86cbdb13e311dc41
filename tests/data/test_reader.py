"""Samples by position: the right one or an error that names the tar, decoded once while there is room."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.data import datasets, shards
from lungseg.data.datasets import PreparedData
from lungseg.data.reader import SampleReader, _local_copy
from lungseg.errors import ShardError


def opened(folder: Path) -> list[PreparedData]:
    return [datasets.open_dataset(one) for one in datasets.find_datasets([str(folder)])]


def test_every_position_gives_its_rows_sample(prepared: Path) -> None:
    reader = SampleReader(opened(prepared))
    samples = [reader.read(position) for position in range(len(reader.rows))]
    reader.close()
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
    reader.close()


def test_a_flipped_byte_is_refused_with_its_tar_and_sample(own_prepared: Path) -> None:
    data = opened(own_prepared)
    row = data[0].index.to_pylist()[1]
    path = own_prepared / "north" / f"{row['shard']}.tar"
    whole = bytearray(path.read_bytes())
    whole[shards.member_ranges(row)["image"][0] + 100] ^= 1
    path.write_bytes(bytes(whole))
    reader = SampleReader(data)
    reader.read(0)
    with pytest.raises(ShardError, match=rf"{row['shard']}\.tar \({row['image_id']}\): the image of"):
        reader.read(1)
    reader.close()


def test_a_row_that_names_another_sample_is_refused(prepared: Path) -> None:
    data = opened(prepared)[0]
    names = data.index.column("image_id").to_pylist()
    swapped = data.index.set_column(0, data.index.schema.field(0), pa.array([names[1], names[0], *names[2:]]))
    reader = SampleReader([PreparedData(data.folder, data.name, data.preprocess, swapped, data.digest)])
    with pytest.raises(ShardError, match=r"north-000000\.tar: north_00 where the index has north_01"):
        reader.read(0)
    reader.close()


def test_local_copy_is_the_file_itself_on_a_disk(tmp_path: Path) -> None:
    assert _local_copy(str(tmp_path / "x")) == str(tmp_path / "x")


def test_local_copy_is_fetched_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "x.tar"
    path.write_bytes(b"first")
    copy = _local_copy(path.as_uri())
    assert Path(copy).read_bytes() == b"first"
    assert Path(copy).is_relative_to(tmp_path / "home")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", None)
        assert _local_copy(path.as_uri()) == copy
    path.write_bytes(b"another")
    assert Path(_local_copy(path.as_uri())).read_bytes() == b"another"
