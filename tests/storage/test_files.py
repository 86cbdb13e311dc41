"""Atomic writes, listings, and refusal of damaged files, on a disk and on an object store."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, strategies as st
from pyarrow._fs import _MockFileSystem

from lungseg import __version__, storage
from lungseg.errors import InputError
from lungseg.schema import SCHEMA
from lungseg.storage import files, filesystems

TABLE = pa.table({"a": list(range(300)), "b": ["x", "yy", "zzz"] * 100}).replace_schema_metadata(
    {"lungseg.schema": str(SCHEMA)}
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """An in-memory object store behind mock:// URIs."""
    store = _MockFileSystem()
    opened = storage.open_filesystem

    def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
        scheme, inside, rest = path.partition("://")
        return (store, rest) if inside and scheme == "mock" else opened(path)

    monkeypatch.setattr(files, "open_filesystem", open_filesystem)
    return "mock://bucket"


@pytest.fixture(params=["path", "file-uri", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> str:
    """A folder as a local path, a file URI and an object store URI."""
    return {"path": str(tmp_path), "file-uri": tmp_path.as_uri(), "store": bucket}[request.param]


# Names


@pytest.mark.parametrize("uri", ["ftp://a/b", "https://a/b", "lungs://a"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=f"{uri}: not a valid path or URI"):
        storage.exists(uri)


# Files


def test_written_files_are_read_back_from_every_file_system(place: str) -> None:
    path = storage.join(place, "new", "folders", "x.bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"0123456789")
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"0123456789"
    assert storage.read_range(path, 2, 3) == b"234"
    assert storage.read_range(path, 8, 5) == b"89"
    assert storage.stat(path)[0] == 10
    storage.write_bytes(path, b"")
    assert storage.read_bytes(path) == b""
    assert storage.list_files(place) == [path]


def test_delete_accepts_files_folders_and_missing_paths(place: str) -> None:
    for name in ("a/1", "a/b/2", "c"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.delete(storage.join(place, "a"))
    assert storage.list_files(place) == [storage.join(place, "c")]
    storage.delete(storage.join(place, "c"))
    storage.delete(storage.join(place, "c"))
    assert storage.list_files(place) == []


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file_only(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "x.bin")
    storage.write_bytes(path, b"old")

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
            storage.write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bin"]
    assert storage.read_bytes(path) == b"old"


def test_a_file_is_not_listed_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bytes]] = []
    replace = os.replace

    def look_first(source: str, target: str) -> None:
        seen.append((storage.list_files(str(tmp_path)), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_first)
    storage.write_bytes(str(tmp_path / "x.bin"), b"content")
    assert seen == [([], b"content")]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"1")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("read", [storage.read_bytes, storage.stat, storage.read_json, storage.read_table])
def test_a_missing_file_is_named(read: Callable[[str], Any], place: str) -> None:
    path = storage.join(place, "nope")
    with pytest.raises(InputError, match="nope"):
        read(path)
    with pytest.raises(InputError, match="nope"):
        storage.read_range(path, 0, 1)


def test_reading_a_folder_as_a_file_is_refused(tmp_path: Path) -> None:
    for read in (storage.read_bytes, storage.stat):
        with pytest.raises(InputError, match=str(tmp_path)):
            read(str(tmp_path))


def test_stat_changes_with_the_modification_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    before = storage.stat(str(path))
    os.utime(path, ns=(1, before[1] + 1))
    assert storage.stat(str(path)) == storage.stat(path.as_uri()) == (before[0], before[1] + 1)
    assert storage.try_stat(str(tmp_path)) is storage.try_stat(tmp_path.as_uri()) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_refused_without_blocking(link: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(tmp_path / "pipe" if link else path)
    if link:
        path.symlink_to("pipe")
    for name in (str(path), path.as_uri()):
        with pytest.raises(InputError, match=r"x\.png: a pipe, socket or device, expected a file"):
            storage.read_bytes(name)
        assert storage.try_stat(name) is None


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (b"nowhere.png", "a link to nowhere.png: No such file or directory"),
        (b"x.png", "a link to x.png: Too many levels of symbolic links"),
        (b"\xff.png", r"a link to \xff.png: No such file or directory"),
    ],
)
def test_a_broken_link_is_reported_with_its_target(target: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.symlink_to(os.fsdecode(target))
    for name in (str(path), path.as_uri()):
        with pytest.raises(InputError) as refused:
            storage.read_bytes(name)
        assert (
            str(refused.value) == f"{name}: cannot be read ({why}): check that it exists and that you have read rights"
        )
        assert storage.try_stat(name) is None
        assert not storage.exists(name)
        storage.delete(name)


def test_a_file_without_read_rights_gives_a_short_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def open_input_file(self, _: str) -> None:
            raise PermissionError(13, "Failed to open, and much more")

    monkeypatch.setattr(files, "open_filesystem", lambda path: (Closed(), path))
    with pytest.raises(InputError, match=r"^s3://x\.png: cannot be read \(Permission denied\): check"):
        storage.read_bytes("s3://x.png")


def test_a_closed_parent_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def get_file_info(self, _: str) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open_filesystem", lambda path: (Closed(), path))
    for look in (storage.exists, storage.list_files, storage.list_folders, storage.delete):
        with pytest.raises(
            InputError, match=r"^/closed/x: no permission to enter a parent folder: give execute rights"
        ):
            look("/closed/x")


def test_an_unavailable_bucket_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down:
        def get_file_info(self, _: str) -> None:
            raise OSError("When getting information for key 'x': AWS Error UNKNOWN (HTTP status 503)")

    monkeypatch.setattr(filesystems, "_RETRY_PERIOD_S", 0.5)
    monkeypatch.setattr(files, "open_filesystem", lambda path: (Down(), path))
    with pytest.raises(InputError, match=r"s3://x\.png: the bucket does not answer \(.*503\)\): try again"):
        storage.try_stat("s3://x.png")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("AWS Error NETWORK_CONNECTION during HeadObject operation"),
            "the bucket does not answer .* try again",
        ),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), "the bucket refuses access .* your keys"),
        (OSError(5, "Input/output error"), "the disk does not answer .* check the disk"),
    ],
)
def test_bucket_and_disk_errors_are_one_line(error: OSError, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Down:
        def get_file_info(self, _: object) -> None:
            raise error

    monkeypatch.setattr(filesystems, "_RETRY_PERIOD_S", 0.0)
    monkeypatch.setattr(files, "open_filesystem", lambda path: (Down(), path))
    asks: list[Callable[[str], Any]] = [storage.exists, storage.list_files, storage.list_folders]
    for ask in (*asks, storage.list_stats, storage.delete):
        with pytest.raises(InputError, match=f"^s3://b/x: {message}"):
            ask("s3://b/x")


def test_an_unknown_bucket_region_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(_: str) -> None:
        raise OSError("When resolving region for bucket 'b': AWS Error NETWORK_CONNECTION during HeadBucket operation")

    monkeypatch.setattr(filesystems, "open_uri", no_answer)
    with pytest.raises(InputError, match=r"^s3://b/x: the bucket does not answer"):
        storage.try_stat("s3://b/x")


# Listings


def test_files_are_listed_sorted_without_hidden_ones(place: str) -> None:
    names = ["b.png", "a.PNG", "sub/c.png", "sub/deeper/d.jpg", "e.txt", ".hidden.png", ".git/f.png", "sub/.x/g.png"]
    for name in names:
        storage.write_bytes(storage.join(place, name), b"x")

    def listed(*suffixes: str) -> list[str]:
        return [path.removeprefix(place + "/") for path in storage.list_files(place, suffixes)]

    assert listed() == ["a.PNG", "b.png", "e.txt", "sub/c.png", "sub/deeper/d.jpg"]
    assert listed(".png") == ["a.PNG", "b.png", "sub/c.png"]
    assert listed(".png", ".jpg") == ["a.PNG", "b.png", "sub/c.png", "sub/deeper/d.jpg"]
    assert listed(".tif") == []
    assert storage.list_files(place + "/") == storage.list_files(place)


def test_an_archive_in_a_hidden_folder_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "archive"
    storage.write_bytes(str(folder / "a.png"), b"x")
    assert storage.list_files(str(folder)) == [str(folder / "a.png")]


def test_folders_are_listed_sorted_without_hidden_ones(place: str) -> None:
    for name in ("b/x", "a/x", "a/deeper/x", ".git/x", "file"):
        storage.write_bytes(storage.join(place, name), b"x")
    assert storage.list_folders(place) == [storage.join(place, name) for name in ("a", "b")]
    assert storage.list_folders(storage.join(place, "nope")) == []


def test_listing_a_file_or_missing_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"x")
    for missing in (str(path), str(tmp_path / "nope")):
        with pytest.raises(InputError, match=r"no such folder|a file, expected a folder"):
            storage.list_files(missing)
    with pytest.raises(InputError, match="a file, expected a folder"):
        storage.list_folders(str(path))


@pytest.mark.parametrize("name", ["with space", "ümläut", "患者", "100%25", "a#b?c", "a'b\"c", "[x]", "a+b&c"])
def test_unusual_names_are_listed_and_read(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name / f"{name}.png")
    storage.write_bytes(path, b"odd")
    assert storage.list_folders(str(tmp_path)) == [str(tmp_path / name)]
    assert storage.list_files(str(tmp_path)) == [path]
    assert storage.read_bytes(path) == b"odd"


@pytest.mark.parametrize("uri", [False, True])
def test_links_are_listed_under_their_own_names(uri: bool, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "raw" / "b.png"), b"x")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "images").symlink_to("../raw")
    (archive / "a loop").symlink_to(".")
    (archive / "a link to nothing.png").symlink_to("nowhere")
    place, blank = (archive.as_uri(), "%20") if uri else (str(archive), " ")
    names = ["a link to nothing.png".replace(" ", blank), "images/b.png"]
    assert storage.list_files(place, (".png",)) == [f"{place}/{name}" for name in names]
    assert storage.list_folders(place) == [f"{place}/images"]


def test_files_are_sorted_by_full_path(place: str) -> None:
    names = ["a-b.png", "a.png", "a/z.png", "a/b/c.png", "a0.png", "B.png", "ä.png", "z.png"]
    for name in names:
        storage.write_bytes(storage.join(place, quote(name) if "://" in place else name), b"x")
    listed = storage.list_files(place)
    assert listed == sorted(listed)
    assert len(listed) == len(names)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    for path in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(InputError, match=r"/\\xff\.png: the name is not UTF-8: rename it"):
            storage.list_files(path)


# JSON


def test_json_is_read_back_with_its_schema_version(place: str) -> None:
    path = storage.join(place, "x.json")
    storage.write_json(path, {"b": [1, 2.5, None], "ü": "患"})
    assert storage.read_json(path) == {"schema": SCHEMA, "lungseg_version": __version__, "b": [1, 2.5, None], "ü": "患"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"schema": 1, "a"', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "a list, expected a JSON object"),
        (b"null", "null, expected a JSON object"),
        (b"{}", "schema None"),
        (b'{"schema": 1}', "schema 1"),
        (b'{"schema": "1"}', "schema 1"),
    ],
)
def test_json_with_another_schema_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"dataset\.json.*{message}"):
        storage.read_json(str(path))


def test_truncated_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    storage.write_json(str(path), {"a": [1, 2], "b": {"c": "d"}})
    content = path.read_bytes().rstrip()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="not valid JSON"):
            storage.read_json(str(path))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)))
def test_digest_ignores_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert storage.digest(value) == storage.digest(turned)
    assert storage.digest(value) != storage.digest({**value, "one more": 1})
    assert len(storage.digest(value)) == 16


# Parquet


def test_a_table_is_read_back_unchanged(place: str) -> None:
    path = storage.join(place, "x.parquet")
    storage.write_table(path, TABLE)
    assert storage.read_table(path).equals(TABLE, check_metadata=True)


@pytest.mark.parametrize("metadata", [None, {"lungseg.schema": "1"}, {"lungseg.schema": "one"}, {"other": "2"}])
def test_a_table_with_another_schema_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    storage.write_table(path, TABLE.replace_schema_metadata(metadata))
    with pytest.raises(InputError, match=r"x\.parquet: schema"):
        storage.read_table(path)


def test_a_table_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write_table(str(path), TABLE)
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"x\.parquet"):
            storage.read_table(str(path))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for position in range(0, len(content), 2):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x41]) + content[position + 1 :])
        try:
            table = storage.read_table(str(path))
        except InputError:
            continue
        # Every change of a page must be detected; the footer also has statistics that nobody reads.
        assert position >= footer or table.equals(TABLE), f"byte {position} of {len(content)}"


def test_rows_are_counted_from_the_footer(tmp_path: Path) -> None:
    content = storage.table_bytes(TABLE)
    assert storage.count_rows("x.parquet", content) == 300
    assert storage.count_rows("x.parquet", b"\0" * 16 + content[16:]) == 300
    for truncated in (content[:-1], content[:40], b""):
        with pytest.raises(InputError, match=r"x\.parquet: not a Parquet file"):
            storage.count_rows("x.parquet", truncated)


def test_a_process_that_read_a_table_exits_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write_table(str(path), TABLE)
    code = f"from lungseg import storage; print(storage.read_table({str(path)!r}).num_rows)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "300", "")


def test_unusual_names_work_in_a_uri(tmp_path: Path) -> None:
    (tmp_path / "a b%#.png").write_bytes(b"x")
    assert [storage.read_bytes(path) for path in storage.list_files(tmp_path.as_uri())] == [b"x"]


def test_writing_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"")


@pytest.mark.parametrize("folder", ["n" * 300, "/".join(["d" * 200] * 25)], ids=["name", "path"])
def test_too_long_path_is_named_as_the_cause(folder: str, tmp_path: Path) -> None:
    path = str(tmp_path / folder / "plan.json")
    with pytest.raises(InputError, match="a name in it is too long: choose a folder with a shorter path"):
        storage.exists(path)
    with pytest.raises(InputError, match="a name in it is too long: choose a folder with a shorter path"):
        storage.write_bytes(path, b"")


def test_a_path_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zero byte"):
        storage.exists(f"{tmp_path}/a\0b")
