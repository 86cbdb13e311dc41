"""Paths become absolute and stay inside their folder; mistyped paths are refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lungseg.errors import InputError
from lungseg.storage import paths


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), min_size=1, max_size=4))
def test_joined_names_stay_below_their_folder(names: list[str]) -> None:
    if ".." in names:
        with pytest.raises(InputError, match="leaves its folder"):
            paths.join("/base", *names)
    else:
        joined = paths.join("/base", *names)
        assert joined == "/base/" + "/".join(names)
        assert os.path.normpath(joined).startswith("/base")


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "a/..", "/etc/passwd", "/"])
def test_a_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="leaves its folder"):
        paths.join("s3://bucket/data", name)


@pytest.mark.parametrize("name", ["a..b", "...", "..a", "a/b.png", "a b"])
def test_names_with_dots_are_allowed(name: str) -> None:
    assert paths.join("s3://bucket/data/", name) == f"s3://bucket/data/{name}"


def test_relative_paths_start_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert paths.resolve("a/../b/") == f"{tmp_path}/b"
    assert paths.resolve("/x//y/./z/") == "/x/y/z"
    assert paths.resolve("~/x") == "/home/someone/x"
    assert paths.resolve("s3://bucket/a/../b/") == "s3://bucket/a/../b"


def test_submitted_jobs_resolve_relative_paths_in_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert paths.resolve("runs") == "/home/someone/lungseg/runs"
    assert paths.resolve("/runs") == "/runs"
    assert paths.resolve("gs://bucket/runs") == "gs://bucket/runs"


def test_is_inside_compares_complete_names() -> None:
    assert paths.is_inside("/a/b", "/a/b")
    assert paths.is_inside("s3://a/b/c", "s3://a/b")
    assert not paths.is_inside("/a/bc", "/a/b")
    assert not paths.is_inside("/a", "/a/b")


@pytest.mark.parametrize("path", ["/a/b/c.tar", "s3://b/c.tar", "a/c.tar", "/a/b/c.tar/"])
def test_parent_and_name_split_a_path(path: str) -> None:
    assert paths.name_of(path) == "c.tar"
    assert paths.join(paths.parent_of(path), paths.name_of(path)) == path.rstrip("/")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "an empty path: pass a folder"),
        (" ", "an empty path"),
        ("s3:/bucket/x", "expected two: s3://bucket/x"),
        ("s3://bucket/x?region=eu-west-1", "options after a question mark"),
    ],
)
def test_mistyped_paths_are_refused(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paths.resolve(path)


def test_a_null_character_in_a_name_is_refused_visibly() -> None:
    with pytest.raises(InputError, match=r"^a\\0b\.png: no file can have a null character in its name: rename it$"):
        paths.join("/data", "a\0b.png")
