"""Verification reports exactly the files that are missing, damaged, unknown or from another run."""

import shutil
import tarfile
from pathlib import Path

import pytest

from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, shard_format, verify
from lungseg.ingest import sources
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards


def problems_of(folder: Path) -> list[str]:
    problems, shards = verify.check_metadata(str(folder))
    return [*problems, *(text for shard, rows in shards for text in verify.check_shard(str(folder), shard, rows))]


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_an_intact_dataset_has_no_problems(prepared: Path) -> None:
    assert problems_of(prepared / "north") == problems_of(prepared / "south") == []


def test_a_tar_truncated_between_members_is_named(own_prepared: Path) -> None:
    path = own_prepared / "north" / "north-000001.tar"
    with tarfile.open(path) as tar:
        boundary = list(tar)[3].offset
    path.write_bytes(path.read_bytes()[:boundary])
    (problem,) = problems_of(own_prepared / "north")
    assert f"north-000001.tar: {boundary} bytes, expected" in problem


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_a_flipped_bit_is_named_with_its_sample(member: str, own_prepared: Path) -> None:
    row = catalog.open_dataset(str(own_prepared / "north")).index.to_pylist()[3]
    flip_bit(own_prepared / "north" / f"{row['shard']}.tar", shard_format.member_ranges(row)[member][0] + 5)
    (problem,) = problems_of(own_prepared / "north")
    assert f"{row['shard']}.tar" in problem
    assert f"damaged samples: {row['image_id']})" in problem


def test_a_flipped_bit_between_samples_is_found(own_prepared: Path) -> None:
    flip_bit(own_prepared / "north" / "north-000000.tar", -1)
    (problem,) = problems_of(own_prepared / "north")
    assert "north-000000.tar" in problem
    assert "outside the samples" in problem


def test_a_missing_tar_is_named(own_prepared: Path) -> None:
    (own_prepared / "south" / "south-000001.tar").unlink()
    (problem,) = problems_of(own_prepared / "south")
    assert "south-000001.tar: 0 bytes" in problem


def test_an_unknown_tar_is_named(own_prepared: Path) -> None:
    shutil.copy(own_prepared / "south" / "south-000001.tar", own_prepared / "north" / "north-000077.tar")
    (problem,) = problems_of(own_prepared / "north")
    assert "north-000077.tar: not listed in dataset.json" in problem


@pytest.mark.parametrize("name", ["index.parquet", "manifest.parquet"])
def test_metadata_from_another_run_is_named(name: str, own_prepared: Path, archive: Path, tmp_path: Path) -> None:
    other = PreprocessSettings(size=64, histogram="none", classes=("lung", "heart"))
    records = sources.discover(str(archive))[1:]
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "other"), other, 2))
    shutil.copy(tmp_path / "other" / "north" / name, own_prepared / "north" / name)
    (problem,) = problems_of(own_prepared / "north")
    assert f"north/{name}: does not match dataset.json" in problem


@pytest.mark.parametrize("name", ["index.parquet", "manifest.parquet", "dataset.json"])
def test_missing_metadata_is_named(name: str, own_prepared: Path) -> None:
    (own_prepared / "north" / name).unlink()
    (problem,) = problems_of(own_prepared / "north")
    assert f"north/{name}: cannot be read" in problem
