"""Digests of trained images: found exactly, and shared between processes where there are many."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.model import trained_images
from lungseg.model.checkpoint import Checkpoint
from lungseg.schema import METADATA


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate home folder for the shared files."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".cache" / "lungseg" / "trained"


def trained(folder: Path, digests: list[str]) -> Checkpoint:
    table = pa.table({"pixel_digest": pa.array(digests, pa.string())}).replace_schema_metadata(METADATA)
    storage.write_table(str(folder / "trained_on.parquet"), table)
    return Checkpoint(str(folder), {"digests": {"trained_on.parquet": f"of-{len(digests)}"}})


@pytest.mark.parametrize("digests", [[], ["22", "11"], ["b", "a", "bb", ""], [f"{i:032x}" for i in range(50)]])
def test_only_the_digests_of_a_model_are_found(digests: list[str], tmp_path: Path) -> None:
    found = trained_images.trained_images(trained(tmp_path, digests))
    assert all(digest in found for digest in digests if digest)
    assert not any(digest in found for digest in ("33", "1", "c", "a" * 40, "f" * 32, "0" * 31))


def test_many_digests_are_mapped_from_one_shared_file(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_images, "SHARED_FROM", 3)
    few, many = (trained(tmp_path / str(count), [f"{i:032x}" for i in range(count)]) for count in (2, 4))
    assert not isinstance(trained_images.trained_images(few).digests, np.memmap)
    assert not home.exists()
    first = trained_images.trained_images(many)
    (tmp_path / "4" / "trained_on.parquet").unlink()  # the second process does not read it
    second = trained_images.trained_images(many)
    for found in (first, second):
        assert isinstance(found.digests, np.memmap)
        assert f"{3:032x}" in found
        assert f"{4:032x}" not in found


def test_a_damaged_shared_file_is_written_again(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_images, "SHARED_FROM", 1)
    model = trained(tmp_path, ["aa", "bb"])
    home.mkdir(parents=True)
    (home / "of-2.npy").write_bytes(b"x")
    assert "aa" in trained_images.trained_images(model)
    assert "bb" in trained_images.trained_images(model)
