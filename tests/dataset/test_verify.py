"""Verifying names what is missing, damaged, strange or of another run, and nothing else."""

import shutil
import tarfile
from pathlib import Path

import pytest

from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, shard_format, verify
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards


def check(folder: Path) -> list[str]:
    wrong, tars = verify.check_metadata(str(folder))
    return [*wrong, *(message for shard, rows in tars for message in verify.check_shard(str(folder), shard, rows))]


def test_what_is_whole_is_told_to_be_so(prepared: Path) -> None:
    assert check(prepared / "north") == check(prepared / "south") == []


def test_a_tar_cut_at_a_members_boundary_is_named(own_prepared: Path) -> None:
    path = own_prepared / "north" / "north-000001.tar"
    with tarfile.open(path) as tar:
        boundary = list(tar)[3].offset
    path.write_bytes(path.read_bytes()[:boundary])
    (message,) = check(own_prepared / "north")
    assert f"north-000001.tar: {boundary} bytes, expected" in message


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_a_flipped_byte_is_named_with_its_sample(member: str, own_prepared: Path) -> None:
    row = catalog.open_dataset(str(own_prepared / "north")).index.to_pylist()[3]
    path = own_prepared / "north" / f"{row['shard']}.tar"
    whole = path.read_bytes()
    place = shard_format.member_ranges(row)[member][0] + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    (message,) = check(own_prepared / "north")
    assert f"{row['shard']}.tar" in message
    assert f"damaged samples: {row['image_id']})" in message


def test_a_flipped_byte_between_the_samples_is_found_too(own_prepared: Path) -> None:
    path = own_prepared / "north" / "north-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    (message,) = check(own_prepared / "north")
    assert "north-000000.tar" in message
    assert "outside the samples" in message


def test_a_missing_tar_is_named(own_prepared: Path) -> None:
    (own_prepared / "south" / "south-000001.tar").unlink()
    (message,) = check(own_prepared / "south")
    assert "south-000001.tar: 0 bytes" in message


def test_a_strange_tar_is_named(own_prepared: Path) -> None:
    shutil.copy(own_prepared / "south" / "south-000001.tar", own_prepared / "north" / "north-000077.tar")
    (message,) = check(own_prepared / "north")
    assert "north-000077.tar: not a tar of this data set" in message


@pytest.mark.parametrize("name", ["index.parquet", "manifest.parquet"])
def test_papers_of_another_run_are_named(name: str, own_prepared: Path, archive: Path, tmp_path: Path) -> None:
    other = PreprocessSettings(size=64, histogram="none", classes=("lung", "heart"))
    records = sources.discover(str(archive))[1:]
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "other"), other, 2))
    shutil.copy(tmp_path / "other" / "north" / name, own_prepared / "north" / name)
    (message,) = check(own_prepared / "north")
    assert f"north/{name}: not the one that dataset.json was written with" in message


@pytest.mark.parametrize("name", ["index.parquet", "manifest.parquet", "dataset.json"])
def test_missing_papers_are_named(name: str, own_prepared: Path) -> None:
    (own_prepared / "north" / name).unlink()
    (message,) = check(own_prepared / "north")
    assert f"north/{name}: cannot be read" in message
