"""Listings of a disk with links, loops, pipes, unreadable folders and file names that are not UTF-8."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lungseg.errors import InputError
from lungseg.storage import filesystems

DISK = pafs.LocalFileSystem()


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(folder: Path) -> list[str]:
    return sorted(filesystems.list_files_below(DISK, str(folder)))


def refuse(path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the listing of one folder fail; root, who may run the tests, ignores file permissions."""
    scandir = os.scandir

    def scan(folder: str) -> Any:
        if Path(folder) == path:
            raise error
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)


# Links


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    lay(tmp_path, "elsewhere/images/a.png", "elsewhere/images/deeper/b.png", "elsewhere/c.png", "archive/d.png")
    (tmp_path / "archive" / "images").symlink_to(tmp_path / "elsewhere" / "images")
    (tmp_path / "archive" / "c.png").symlink_to("../elsewhere/c.png")
    assert listed(tmp_path / "archive") == ["c.png", "d.png", "images/a.png", "images/deeper/b.png"]
    assert filesystems.list_subfolders(DISK, str(tmp_path / "archive")) == ["images"]


def test_two_links_to_one_folder_give_its_files_twice(tmp_path: Path) -> None:
    lay(tmp_path, "raw/a.png")
    for name in ("north", "south"):
        (tmp_path / "archive" / name).mkdir(parents=True)
        (tmp_path / "archive" / name / "images").symlink_to(tmp_path / "raw")
    assert listed(tmp_path / "archive") == ["north/images/a.png", "south/images/a.png"]


def test_an_archive_that_is_a_link_is_listed(tmp_path: Path) -> None:
    lay(tmp_path, "raw/a.png")
    (tmp_path / "raw" / "back").symlink_to(tmp_path / "archive")
    (tmp_path / "archive").symlink_to("raw")
    assert listed(tmp_path / "archive") == ["a.png"]
    assert listed(tmp_path / "raw") == ["a.png"]


@pytest.mark.timeout(20)  # followed to the end, ten links of these kinds would give 2 ** 40 paths
def test_a_link_loop_lists_each_file_once(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "sub/deeper/b.png")
    for number in range(5):
        (tmp_path / f"here_{number}").symlink_to(".")
        (tmp_path / "sub" / f"up_{number}").symlink_to(tmp_path)
        (tmp_path / "sub" / "deeper" / f"up_{number}").symlink_to("..")
    assert listed(tmp_path) == ["a.png", "sub/deeper/b.png"]


def test_a_loop_through_an_outside_folder_ends(tmp_path: Path) -> None:
    lay(tmp_path, "archive/images/a.png", "b.png")
    (tmp_path / "archive" / "out").symlink_to("..")
    assert listed(tmp_path / "archive") == ["images/a.png", "out/b.png"]


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    assert listed(tmp_path) == ["a/1.png", "a/other/2.png", "b/2.png", "b/other/1.png"]


def test_hidden_files_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay(tmp_path, "a.png", ".b.png", "sub/.c.png", ".git/d.png", ".writing-x", ".shared-1/token")
    with caplog.at_level(logging.INFO, "lungseg"):
        assert listed(tmp_path) == ["a.png"]
    assert f"{tmp_path}: skipped 3 hidden files and folders (first: .b.png)" in caplog.text


def test_broken_links_are_listed_as_files_only(tmp_path: Path) -> None:
    lay(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere/gone.png")
    (tmp_path / "images").symlink_to("/nowhere/images")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "through.png").symlink_to("a.png/b.png")
    (tmp_path / ".hidden.png").symlink_to("nowhere")
    assert listed(tmp_path) == ["a.png", "gone.png", "images", "itself.png", "through.png"]
    assert filesystems.list_subfolders(DISK, str(tmp_path)) == []


def test_a_link_to_a_parent_is_not_a_subfolder(tmp_path: Path) -> None:
    lay(tmp_path, "a/x/1.png", "ab/2.png")
    for name, target in (("here", "."), ("up", ".."), ("root", "/"), ("beside", "../ab"), ("y", "x")):
        (tmp_path / "a" / name).symlink_to(target)
    assert sorted(filesystems.list_subfolders(DISK, str(tmp_path / "a"))) == ["beside", "x", "y"]


# Entries that are not files


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a socket in tmp_path."""
    monkeypatch.chdir(tmp_path)  # the path of a socket may have about 100 characters
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.png")
        yield "socket.png"


@pytest.mark.timeout(20)
def test_pipes_sockets_and_devices_are_skipped_with_a_warning(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to_pipe.png").symlink_to("pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    with caplog.at_level(logging.WARNING, "lungseg"):
        assert listed(tmp_path) == ["a.png"]
    assert f"{tmp_path}: skipped 4 pipes, sockets or devices (first: pipe.png)" in caplog.text


def test_a_folder_of_plain_files_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay(tmp_path, "a.png", "b/c.png")
    with caplog.at_level(logging.DEBUG, "lungseg"):
        listed(tmp_path)
    assert not caplog.records


# Folders that cannot be listed


def test_a_folder_without_read_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a.png", "closed/b.png")
    refuse(tmp_path / "closed", PermissionError(13, "Permission denied"), monkeypatch)
    message = (
        rf"^{tmp_path}/closed: cannot list this folder \(Permission denied\): "
        "give read and execute rights, or move it out of the archive$"
    )
    with pytest.raises(InputError, match=message):
        listed(tmp_path)
    with pytest.raises(InputError, match=message):
        filesystems.list_subfolders(DISK, str(tmp_path / "closed"))


def test_a_folder_with_a_disk_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "torn/b.png")
    refuse(tmp_path / "torn", OSError(5, "Input/output error"), monkeypatch)
    with pytest.raises(
        InputError, match=rf"{tmp_path}/torn: cannot list this folder \(Input/output error\): check the disk, or"
    ):
        listed(tmp_path)


@pytest.mark.parametrize("name", [".closed", "lost+found"])
def test_skipped_folders_need_no_read_rights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a.png", f"{name}/b.png")
    refuse(tmp_path / name, PermissionError(13, "Permission denied"), monkeypatch)
    assert listed(tmp_path) == ["a.png"]
    assert filesystems.list_subfolders(DISK, str(tmp_path)) == []


# Names


@pytest.mark.parametrize(
    ("name", "message"), [(b"M\xfcller.png", r"M\xfcller.png"), (b"sub/M\xfcller/a.png", r"sub/M\xfcller")]
)
def test_a_name_that_is_not_utf8_is_escaped_in_errors(name: bytes, message: str, tmp_path: Path) -> None:
    lay(tmp_path, os.fsdecode(name))
    with pytest.raises(InputError) as refused:
        listed(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/{message}: the name is not UTF-8: rename it")


def test_a_hidden_name_may_have_any_bytes(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", os.fsdecode(b".\xff.png"))
    assert listed(tmp_path) == ["a.png"]


def test_printable_escapes_only_invalid_bytes() -> None:
    assert filesystems.printable("/患者/ümläut.png") == "/患者/ümläut.png"
    assert filesystems.printable(os.fsdecode(b"/\xff\xc3.png")) == r"/\xff\xc3.png"


def test_a_byte_range_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert [filesystems.read_file(str(path), *byte_range) for byte_range in ((0, None), (3, 2), (8, 9), (20, 5))] == [
        b"0123456789",
        b"34",
        b"89",
        b"",
    ]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: a pipe, socket or device, expected a file"):
        filesystems.read_file(str(tmp_path / "pipe"), 0, None)
    for name in ("none", "."):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            filesystems.read_file(str(tmp_path / name), 0, None)


# Retries


TEMPORARY_ERRORS = (
    "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server",
    "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
    "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
    "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)",
    "google::cloud::Status(UNAVAILABLE: Retry policy exhausted)",
)
PERMANENT_ERRORS = (
    "AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
    "AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.",
    "Bucket 'hospitl' not found. To create buckets, enable the allow_bucket_creation option.",
    "google::cloud::Status(PERMISSION_DENIED: no)",
)


class _Store:
    """Raises an error a number of times, then returns 7."""

    def __init__(self, error: OSError, times: int) -> None:
        self.error, self.failures, self.calls = error, times, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return 7


@pytest.mark.parametrize("message", TEMPORARY_ERRORS)
def test_temporary_errors_are_retried(message: str) -> None:
    store = _Store(OSError(message), times=2)
    assert filesystems.retry(store) == 7
    assert store.calls == 3


@pytest.mark.parametrize(
    "error", [*map(OSError, PERMANENT_ERRORS), FileNotFoundError(2, "No such file"), OSError(5, "SLOW_DOWN")]
)
def test_permanent_errors_are_raised_at_once(error: OSError) -> None:
    store = _Store(error, times=1)
    with pytest.raises(type(error)):
        filesystems.retry(store)
    assert store.calls == 1


def test_retries_end_after_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_RETRY_PERIOD_S", 1.0)
    store, began = _Store(OSError(TEMPORARY_ERRORS[0]), times=1000), time.monotonic()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        filesystems.retry(store)
    assert store.calls > 1
    assert time.monotonic() - began < 3.0


def test_s3_keeps_its_keys_and_gets_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    filesystem, inner = filesystems.open_uri("s3://me:secret%2F@hospital/a%20b/c")
    assert inner == "hospital/a b/c"
    _, (options, *_) = filesystem.__reduce__()
    assert (options["access_key"], options["secret_key"]) == ("me", "secret/")
    assert options["endpoint_override"] == "http://127.0.0.1:9"
    assert filesystem.region == "eu-west-3"
    assert 0 < options["connect_timeout"] <= options["request_timeout"] <= 10


def test_google_folders_are_derived_from_their_files() -> None:
    class Store:
        """Lists only objects, like Arrow does for a bucket."""

        type_name = "gcs"

        def get_file_info(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
            names = ["a/1.tar", "a/2.tar", "b/parts/1.json", "c.json", ".d/x"]
            files = [pafs.FileInfo(f"{selector.base_dir}/{name}", pafs.FileType.File, size=1) for name in names]
            return files if selector.recursive else [file for file in files if file.path.count("/") == 2]

    assert sorted(filesystems.list_subfolders(Store(), "bucket/data")) == ["a", "b"]  # type: ignore[arg-type]
    assert len(filesystems.list_files_below(Store(), "bucket/data")) == 4  # type: ignore[arg-type]
