"""Which files a command line names, under which label and output name."""

import zipfile
from pathlib import Path

import pytest

from lungseg.errors import InputError
from lungseg.segment_command.inputs import GivenImage, list_images

PNG = b"\x89PNG\r\n\x1a\n"


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)


def listed(tmp_path: Path, *words: Path | str, out: str = "") -> list[GivenImage]:
    return list_images([str(word) for word in words], out or str(tmp_path / "out"), str(tmp_path / "unpacked"))


def names(tmp_path: Path, *words: Path | str, out: str = "") -> list[str]:
    return [image.name for image in listed(tmp_path, *words, out=out)]


def test_folders_keep_their_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "x/a.png", tmp_path / "x/ward 3/Müller.dcm", tmp_path / "x/notes.txt", tmp_path / "x/.hidden.png")
    assert names(tmp_path, tmp_path / "x") == ["a", "ward 3/Müller"]


def test_equal_names_get_numbers_and_ids_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "x/a.png", tmp_path / "y/a.png", tmp_path / "y/a.dcm")
    images = listed(tmp_path, tmp_path / "x", tmp_path / "y")
    assert [image.name for image in images] == ["a", "a-2", "a-3"]
    assert len({image.record.image_id for image in images}) == 3


def test_a_file_named_twice_is_listed_once(tmp_path: Path) -> None:
    write(tmp_path / "x/a.png")
    assert names(tmp_path, tmp_path / "x/a.png", tmp_path / "x", tmp_path / "x/*.png") == ["a"]


def test_patterns_match_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "x1/a.png", tmp_path / "x2/deep/b.png", tmp_path / "x2/c.dcm")
    assert names(tmp_path, tmp_path / "x*") == ["a", "c", "deep/b"]
    assert names(tmp_path, tmp_path / "**/*.png") == ["a", "b"]


def test_masks_and_earlier_results_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "x/images/a.png", tmp_path / "x/masks/a.png", tmp_path / "x/old/overlays/a.png")
    (tmp_path / "x/old/segment.json").write_text("{}")
    write(tmp_path / "x/out/overlays/a.png")
    assert names(tmp_path, tmp_path / "x", out=str(tmp_path / "x/out")) == ["images/a"]


def test_members_of_zip_archives_have_labels(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("day 1/a.png", PNG)
    (image,) = listed(tmp_path, tmp_path / "scans.zip")
    assert (image.name, image.label) == ("day 1/a", f"{tmp_path}/scans.zip/day 1/a.png")
    assert Path(image.record.image_uri).read_bytes() == PNG
    assert image.relabel(f"{image.record.image_uri}: unreadable") == f"{image.label}: unreadable"


def test_a_bucket_is_listed_and_matched(bucket: str, tmp_path: Path) -> None:
    from lungseg import storage

    for name in ("a.png", "b b.dcm", "deep/c.png"):
        storage.write_bytes(f"{bucket}/xrays/{name.replace(' ', '%20')}", PNG)
    assert names(tmp_path, f"{bucket}/xrays") == ["a", "b b", "deep/c"]
    assert names(tmp_path, f"{bucket}/xrays/*.png") == ["a", "c"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("missing.png", "no such file or folder"),
        ("*.tiff", "no file matches this pattern"),
        ("empty", "no image in it"),
        ("masks", "folders named like masks do not count"),
        ("list.csv", "pass it to lungseg infer"),
        ("empty.zip", "no image in it"),
    ],
)
def test_paths_without_images_are_refused(word: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "masks/lung_masks/a.png", tmp_path / "list.csv")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(InputError, match=message):
        listed(tmp_path, tmp_path / word)


def test_standard_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save it as a file"):
        listed(tmp_path, "-")
