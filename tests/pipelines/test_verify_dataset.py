"""Verification on a cluster: same result as in one process, and an error without a dataset."""

from pathlib import Path

import pytest

from lungseg.errors import InputError, ShardError
from lungseg.pipelines import verify_dataset


def test_each_damaged_tar_is_named(ray_cluster: None, own_prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        verify_dataset.run(str(own_prepared))
    assert "5 tars, all intact" in caplog.text
    names = ("north/north-000001", "south/south-000000")
    for name in names:
        path = own_prepared / f"{name}.tar"
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 0x10
        path.write_bytes(bytes(content))
    with pytest.raises(ShardError, match="2 problems"):
        verify_dataset.run(str(own_prepared))
    assert all(f"{name}.tar: the content changed after it was written" in caplog.text for name in names)


def test_dataset_with_damaged_json_is_named(own_prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("north", "south"):
        (own_prepared / name / "dataset.json").write_text("{")
    with pytest.raises(ShardError, match="2 problems"):
        verify_dataset.run(str(own_prepared))
    assert "north/dataset.json: not valid JSON" in caplog.text


def test_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not prepared, or not finished"):
        verify_dataset.run(str(tmp_path))
