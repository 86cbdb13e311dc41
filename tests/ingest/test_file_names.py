"""Names that are images, names that are litter, and ids."""

import re

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
def test_a_name_tells_an_image(name: str) -> None:
    assert file_names.is_image(name) == (name in IMAGES)


@pytest.mark.parametrize("path", [".a.png", "x/.git/a.png", "__MACOSX/a.png", "x/Thumbs.db", "desktop.ini", "._a"])
def test_litter(path: str) -> None:
    assert file_names.is_system_file(path)


@pytest.mark.parametrize("path", ["a.png", "x.y/a", "MACOSX/a.png", "Thumbs.db/a.png", "a..b"])
def test_no_litter(path: str) -> None:
    assert not file_names.is_system_file(path)


@pytest.mark.parametrize(
    ("path", "stem"), [("a.png", "a"), ("x/a.b.PNG", "x/a.b"), ("1.2.3", "1.2.3"), ("a", "a"), ("a.jpg.png", "a.jpg")]
)
def test_only_a_known_suffix_is_cut_off(path: str, stem: str) -> None:
    assert file_names.stem(path) == stem


@given(st.text(min_size=1))
def test_ids_are_safe(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", file_names.image_id(name))
    assert re.fullmatch(r"[a-z0-9_-]+", file_names.dataset_name(name))


@given(st.sets(st.text(alphabet="aB/_- é患", min_size=1, max_size=4)))
def test_names_of_data_sets_differ(titles: set[str]) -> None:
    found = file_names.dataset_names(titles, "archive")
    assert set(found) == titles
    assert len(set(found.values())) == len(titles)


def test_a_path_below_a_folder_is_unquoted_in_a_uri_only() -> None:
    assert file_names.relative_path("s3://b/x", "s3://b/x/a%20b/c.png") == "a b/c.png"
    assert file_names.relative_path("/b/x/", "/b/x/a%20b/c.png") == "a%20b/c.png"
