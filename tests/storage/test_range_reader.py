"""Byte ranges of files in a bucket: connected once, opened once, the same errors as other reads."""

from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.storage import files


class Bucket:
    """A folder that looks like a bucket and counts what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.opened: list[str] = []
        self.connections = 0
        self._files = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())

    def open_input_file(self, inner: str) -> Any:
        self.opened.append(inner)
        return self._files.open_input_file(inner)

    def connect(self, path: str) -> tuple["Bucket", str]:
        self.connections += 1
        return self, path.removeprefix("s3://").replace("%20", " ")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket(tmp_path)
    monkeypatch.setattr(files, "open_filesystem", bucket.connect)
    (tmp_path / "hospital").mkdir()
    for name in ("a b.tar", "c.tar"):
        (tmp_path / "hospital" / name).write_bytes(f"0123456789{name}".encode())
    return bucket


def test_a_file_is_opened_once_and_its_bucket_connected_once(bucket: Bucket) -> None:
    reader = storage.RangeReader()
    for _ in range(3):
        assert reader.read("s3://hospital/a%20b.tar", 2, 3) == b"234"
        assert reader.read("s3://hospital/c.tar", 10, 99) == b"c.tar"
    assert bucket.opened == ["hospital/a b.tar", "hospital/c.tar"]
    assert bucket.connections == 1


def test_a_missing_file_is_named(bucket: Bucket) -> None:
    with pytest.raises(InputError, match=r"^s3://hospital/none\.tar: cannot be read .*check that it exists"):
        storage.RangeReader().read("s3://hospital/none.tar", 0, 1)


def test_a_local_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123")
    for path in (str(tmp_path / "a.tar"), (tmp_path / "a.tar").as_uri()):
        assert storage.RangeReader().read(path, 1, 2) == b"12"
