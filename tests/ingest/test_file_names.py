"""Images and system files are recognised by name; ids and dataset names are safe and unique."""

import re
import unicodedata

import pytest
from hypothesis import given, strategies as st

from lungseg.ingest import file_names

IMAGES = ["a.png", "A.JPG", "x/y.tiff", "IM0001", "x/1.2.840.113", "a.001", "dicom"]
OTHERS = [
    "a.txt",
    "a.dcm.gz",
    "README",
    "readme",
    "x/LICENSE",
    "SHA256SUMS",
    "MD5SUMS",
    "DICOMDIR",
    "Makefile",
    "a.",
    ".",
]


@pytest.mark.parametrize("name", [*IMAGES, *OTHERS])
def test_images_are_recognised_by_name(name: str) -> None:
    assert file_names.is_image(name) == (name in IMAGES)


@pytest.mark.parametrize("path", [".a.png", "x/.git/a.png", "__MACOSX/a.png", "x/Thumbs.db", "desktop.ini", "._a"])
def test_system_files_are_recognised(path: str) -> None:
    assert file_names.is_system_file(path)


@pytest.mark.parametrize("path", ["a.png", "x.y/a", "MACOSX/a.png", "Thumbs.db/a.png", "a..b"])
def test_other_files_are_no_system_files(path: str) -> None:
    assert not file_names.is_system_file(path)


@pytest.mark.parametrize(
    ("path", "stem"), [("a.png", "a"), ("x/a.b.PNG", "x/a.b"), ("1.2.3", "1.2.3"), ("a", "a"), ("a.jpg.png", "a.jpg")]
)
def test_stem_removes_known_suffixes_only(path: str, stem: str) -> None:
    assert file_names.stem(path) == stem


@given(st.text(min_size=1))
def test_ids_are_safe(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", file_names.image_id(name))
    assert re.fullmatch(r"[a-z0-9_-]+", file_names.dataset_name(name))


@given(st.sets(st.text(alphabet="aB/_- é患", min_size=1, max_size=4)))
def test_dataset_names_are_unique(titles: set[str]) -> None:
    names = file_names.dataset_names(titles, "archive")
    assert set(names) == titles
    assert len(set(names.values())) == len(titles)


def test_only_uris_are_percent_decoded() -> None:
    assert file_names.relative_path("s3://b/x", "s3://b/x/a%20b/c.png") == "a b/c.png"
    assert file_names.relative_path("/b/x/", "/b/x/a%20b/c.png") == "a%20b/c.png"


@pytest.mark.parametrize("name", ["Müller", "röntgen größe 2", "검사/03", "é" * 300])
def test_unicode_forms_of_a_name_give_one_id(name: str) -> None:
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert len(set(forms)) == 2
    assert len({file_names.image_id(form) for form in forms}) == 1
    assert len({file_names.dataset_name(form) for form in forms}) == 1
    assert len({file_names.relative_path("/d", f"/d/{form}") for form in forms}) == 1


@pytest.mark.parametrize("length", [1, 64, 200])
def test_ids_of_ordinary_length_are_not_shortened(length: int) -> None:
    assert file_names.image_id("a" * length) == "a" * length


@given(st.integers(201, 2000), st.sampled_from("a/é."))
def test_long_names_give_short_distinct_stable_ids(length: int, end: str) -> None:
    name = "1.2.840/" * (length // 8) + "a" * (length % 8)
    ids = {file_names.image_id(name + end + last) for last in "12"}
    assert len(ids) == 2
    assert {len(own) for own in ids} == {file_names.MAX_ID}
    assert file_names.image_id(name + end + "1") in ids


def test_long_folder_names_give_short_distinct_dataset_names() -> None:
    titles = [f"{'deep/' * 80}{name}" for name in "ab"]
    names = file_names.dataset_names(titles, "archive")
    assert len(set(names.values())) == 2
    assert max(map(len, names.values())) <= 150
