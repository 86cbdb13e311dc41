"""Local copies of tars in a bucket: downloaded once, within a disk budget, by concurrent readers, always complete."""

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lungseg import storage
from lungseg.dataset import shard_cache
from lungseg.dataset.shard_cache import ShardCache
from lungseg.errors import InputError

os_disk_usage = shutil.disk_usage
MIB = 1 << 20
RANGES = {"head": (0, 4), "tail": (MIB - 4, 4)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate home folder for the copies."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".cache" / "lungseg" / "shards"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were downloaded completely."""
    names: list[str] = []
    read_bytes = storage.read_bytes

    def noted(path: str) -> bytes:
        names.append(storage.name_of(path))
        return read_bytes(path)

    monkeypatch.setattr(storage, "read_bytes", noted)
    return names


def a_tar(folder: Path, letter: str) -> str:
    """A file of one MiB behind a URI, as in a bucket."""
    path = folder / f"{letter}.tar"
    path.write_bytes(letter.encode() * MIB)
    return path.as_uri()


def copies(home: Path) -> list[int]:
    return sorted(path.stat().st_size for path in home.glob("*.tar"))


def test_a_local_file_is_read_without_a_copy(tmp_path: Path, home: Path, fetched: list[str]) -> None:
    a_tar(tmp_path, "a")
    assert ShardCache(9).read(str(tmp_path / "a.tar"), RANGES) == {"head": b"aaaa", "tail": b"aaaa"}
    assert not fetched
    assert not home.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none.tar"), (tmp_path / "none.tar").as_uri()):
        with pytest.raises(InputError, match=r"none\.tar"):
            ShardCache(9).read(path, RANGES)


def test_a_tar_is_fetched_once_and_again_after_a_change(tmp_path: Path, home: Path, fetched: list[str]) -> None:
    uri = a_tar(tmp_path, "a")
    for cache in (ShardCache(9), ShardCache(9)):
        for _ in range(2):
            assert cache.read(uri, RANGES) == {"head": b"aaaa", "tail": b"aaaa"}
    assert fetched == ["a.tar"]
    (tmp_path / "a.tar").write_bytes(b"b" * MIB)
    assert ShardCache(9).read(uri, RANGES)["head"] == b"bbbb"
    assert fetched == ["a.tar"] * 2


def test_the_oldest_copies_are_deleted_first(tmp_path: Path, home: Path, fetched: list[str]) -> None:
    cache = ShardCache(2)
    a_day_ago = time.time() - 25 * 3600
    uris = [a_tar(tmp_path, letter) for letter in "abc"]
    for uri, letter in zip(uris, "abc", strict=True):
        assert cache.read(uri, RANGES)["head"] == letter.encode() * 4
        for number, copy in enumerate(sorted(home.glob("*.tar"), key=lambda path: path.stat().st_mtime)):
            os.utime(copy, (a_day_ago + number, a_day_ago + number))
    assert copies(home) == [MIB, MIB]
    cache.read(uris[2], RANGES)
    assert fetched == ["a.tar", "b.tar", "c.tar"]
    assert cache.read(uris[0], RANGES)["head"] == b"aaaa"
    assert fetched[3:] == ["a.tar"]


def test_copies_of_today_are_kept(tmp_path: Path, home: Path, fetched: list[str]) -> None:
    cache = ShardCache(2)
    uris = [a_tar(tmp_path, letter) for letter in "abc"]
    for _ in range(2):
        for uri, letter in zip(uris, "abc", strict=True):
            assert cache.read(uri, RANGES)["head"] == letter.encode() * 4
    assert fetched == ["a.tar", "b.tar"]
    assert copies(home) == [MIB, MIB]


def test_a_full_cache_is_not_searched_for_room_again_at_once(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, searches = ShardCache(1), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: searches.append(path) or os_disk_usage(path))
    for letter in "abcd":
        for _ in range(2):
            assert cache.read(a_tar(tmp_path, letter), RANGES)["tail"] == letter.encode() * 4
    assert len(searches) == 2
    assert copies(home) == [MIB]


def test_adjacent_members_are_read_together() -> None:
    content = bytes(range(256)) * 64
    ranges = {"mask": (1600, 300), "image": (512, 500), "json": (2600, 17), "far": (9000, 5), "cut": (16000, 999)}
    reads: list[tuple[int, int]] = []

    def read_range(_: str, offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return content[offset : offset + size]

    members = shard_cache.read_ranges("a.tar", ranges, read_range)
    assert reads == [(512, 2105), (9000, 5), (16000, 999)]
    assert list(members) == list(ranges)
    assert members == {name: content[offset : offset + size] for name, (offset, size) in ranges.items()}


def test_disk_space_is_left_for_others(
    tmp_path: Path, home: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_RESERVED_BYTES", 1 << 60)
    assert ShardCache(9).read(a_tar(tmp_path, "a"), RANGES)["head"] == b"aaaa"
    assert not fetched
    assert not copies(home)


@pytest.mark.parametrize("budget", [0])
def test_a_tar_beyond_the_budget_is_not_copied(budget: int, tmp_path: Path, home: Path, fetched: list[str]) -> None:
    assert ShardCache(budget).read(a_tar(tmp_path, "a"), RANGES) == {"head": b"aaaa", "tail": b"aaaa"}
    assert not fetched
    assert not home.exists()


def test_a_running_download_reserves_its_space(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (a_tar(tmp_path, letter) for letter in "ab")
    read_bytes, others = storage.read_bytes, []

    def meanwhile(path: str) -> bytes:
        monkeypatch.setattr(storage, "read_bytes", read_bytes)
        others.append(ShardCache(1).read(second, RANGES)["head"])  # as another process would
        others.append(sorted(entry.suffix for entry in home.iterdir() if entry.suffix != ".lock"))
        return read_bytes(path)

    monkeypatch.setattr(storage, "read_bytes", meanwhile)
    assert ShardCache(1).read(first, RANGES)["head"] == b"aaaa"
    assert others == [b"bbbb", [".writing"]]
    assert copies(home) == [MIB]
    assert not list(home.glob("*.writing"))


def test_a_full_disk_only_disables_the_cache(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache, uri = ShardCache(9), a_tar(tmp_path, "a")
    for _ in range(2):
        assert cache.read(uri, RANGES)["tail"] == b"aaaa"
    assert not copies(home)
    assert not list(home.glob("*.writing"))
    assert caplog.text.count("No space left on device") == 1


def test_a_deleted_copy_is_replaced_by_a_direct_read(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError

    cache, uri = ShardCache(9), a_tar(tmp_path, "a")
    monkeypatch.setattr(shard_cache, "_read_copy", gone)
    assert cache.read(uri, RANGES)["head"] == b"aaaa"


def test_threads_fetch_it_once(tmp_path: Path, fetched: list[str]) -> None:
    uri = a_tar(tmp_path, "a")
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda _: ShardCache(9).read(uri, RANGES)["head"], range(8)))
    assert contents == [b"aaaa"] * 8
    assert fetched == ["a.tar"]


READ = """
import sys
from lungseg import storage
from lungseg.dataset.shard_cache import ShardCache
read_bytes = storage.read_bytes
storage.read_bytes = lambda path: print("fetched") or read_bytes(path)
assert ShardCache(9).read(sys.argv[1], {"head": (0, 4)})["head"] == b"aaaa"
"""


def test_processes_fetch_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ, a_tar(tmp_path, "a")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert "".join(outputs) == "fetched\n"
