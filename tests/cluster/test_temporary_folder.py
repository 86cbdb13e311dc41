"""The folder of a Ray that a job starts: sockets have short paths, and nobody else can open it."""

import os
from pathlib import Path

import pytest

from lungseg.cluster import temporary_folder
from lungseg.cluster.temporary_folder import MAX_LENGTH, choose_ray_folder
from lungseg.errors import SettingsError


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for /tmp."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = tmp_path / "short"
    folder.mkdir()
    monkeypatch.setattr(temporary_folder, "_SHORT_PARENTS", (str(folder),))
    return folder


def _folder_of_length(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a path of this length; the limit is 20 above the path of the test itself."""
    monkeypatch.setattr(temporary_folder, "MAX_LENGTH", len(str(tmp_path)) + 20)
    folder = tmp_path / ("x" * (length - len(str(tmp_path)) - 1))
    folder.mkdir()
    return folder


def test_limit_leaves_room_for_the_socket() -> None:
    socket = f"{'x' * MAX_LENGTH}/ray/session_2026-11-29_10-32-12_900380_4194304/sockets/plasma_store"
    assert len(socket) in (103, 107)


@pytest.mark.parametrize(("extra", "is_short"), [(0, False), (1, True), (60, True)])
def test_long_folder_is_replaced_by_a_private_one(
    extra: int, is_short: bool, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder_of_length(tmp_path, len(str(tmp_path)) + 20 + extra, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(folder))
    private = short / f"lungseg-user-{os.getuid()}"
    assert choose_ray_folder() == str((private if is_short else folder) / "ray")
    assert not is_short or private.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("name", "is_short"), [("a b", False), ("temporär", True), ("Größe 1", True), ("日本", True)])
def test_folder_with_letters_unknown_to_ray_is_replaced(
    name: str, is_short: bool, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_folder, "MAX_LENGTH", 1000)
    (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    assert choose_ray_folder().startswith(str(short)) == is_short


def test_folder_of_another_kind_or_open_to_others_is_refused(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_folder, "MAX_LENGTH", 1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    private = short / f"lungseg-user-{os.getuid()}"
    private.mkdir(mode=0o755)
    with pytest.raises(SettingsError, match=rf"TMPDIR={tmp_path}: .*{short}: set RAY_TMPDIR to a short folder"):
        choose_ray_folder()
    private.rmdir()
    (tmp_path / "foreign").mkdir(mode=0o700)
    private.symlink_to(tmp_path / "foreign")
    with pytest.raises(SettingsError, match="set RAY_TMPDIR"):
        choose_ray_folder()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("kind", ["missing", "file", "refusing"])
def test_unusable_folder_is_named_in_one_line(
    variable: str, kind: str, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("/proc") if kind == "refusing" else tmp_path / "folder"
    if kind == "file":
        folder.touch()
    monkeypatch.setenv(variable, str(folder))
    with pytest.raises(SettingsError, match=rf"{variable}={folder}: .*: set TMPDIR to a folder") as refused:
        choose_ray_folder()
    assert len(str(refused.value).splitlines()) == 1
    assert not list(short.iterdir())


def test_ray_variable_comes_before_that_of_the_system(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_folder, "MAX_LENGTH", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert choose_ray_folder() == str(short / "ray")
