"""Zip archives: which members are X-rays, and what is refused."""

import zipfile
from pathlib import Path

import pytest

from lungseg.errors import InputError
from lungseg.segment_command import zip_archives

PNG = b"\x89PNG\r\n\x1a\n not a complete image"


def write_zip(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def test_members_of_systems_and_other_types_are_left_out(tmp_path: Path) -> None:
    names = ["deep/er/a.png", "b.dcm", "__MACOSX/._a.png", "deep/.DS_Store", "notes.txt", "inner.zip", "UID.1.2.3"]
    path = write_zip(tmp_path / "x.zip", dict.fromkeys(names, PNG))
    assert zip_archives.is_zip(path)
    assert zip_archives.image_names(path) == ["UID.1.2.3", "b.dcm", "deep/er/a.png"]


def test_members_are_unpacked_inside_the_folder(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"../../evil.png": PNG, "/abs.png": PNG, "a/ü.png": PNG})
    names = zip_archives.image_names(path)
    assert names == ["../../evil.png", "/abs.png", "a/ü.png"]
    members = zip_archives.unpack(path, names, str(tmp_path / "out"))
    assert [Path(member.path).relative_to(tmp_path / "out").name for member in members] == [
        "evil.png",
        "abs.png",
        "ü.png",
    ]
    assert all(Path(member.path).read_bytes() == PNG for member in members)
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "out"}


def test_unpacking_again_gives_files_of_the_same_time(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": PNG})
    times = {Path(zip_archives.unpack(path, ["a.png"], str(tmp_path))[0].path).stat().st_mtime_ns for _ in range(2)}
    assert len(times) == 1


def test_a_damaged_member_has_a_problem(tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "x.zip", {"a.png": bytes(range(256)) * 40}))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(bytes(content))
    (member,) = zip_archives.unpack(str(path), ["a.png"], str(tmp_path / "out"))
    assert member.problem.startswith("damaged in the archive")
    assert not Path(member.path).exists()


def test_archives_of_implausible_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "bomb.zip", {"a.png": bytes(1 << 20)})
    monkeypatch.setattr(zip_archives, "USUAL_SIZE", 1 << 19)
    with pytest.raises(InputError, match="not an archive of X-rays"):
        zip_archives.image_names(path)


def test_a_huge_member_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": bytes(1000), "b.png": PNG})
    monkeypatch.setattr(zip_archives, "MAX_MEMBER", 999)
    members = zip_archives.unpack(path, ["a.png", "b.png"], str(tmp_path / "out"))
    assert [member.problem for member in members] == ["1000 bytes, at most 999 are read", ""]


def test_encrypted_and_broken_archives_are_refused(tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "x.zip", {"a.png": PNG}))
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    path.write_bytes(content[: directory + 8] + b"\x01" + content[directory + 9 :])
    with pytest.raises(InputError, match="encrypted: unpack it with its password"):
        zip_archives.image_names(str(path))
    path.write_bytes(content[:directory])
    assert not zip_archives.is_zip(str(path))
