"""Ids of images from their paths: unique, and equal in every division into pieces."""

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from lungseg.ingest.file_names import short_digest
from lungseg.ingest.sources.image_ids import ImageIds, common_folder

PATHS = st.sets(st.lists(st.text("aB_-.é ", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join), min_size=1)


def ids_of(uris: Sequence[str]) -> list[str]:
    """Return the ids of images."""
    return ImageIds.of(common_folder(uris) or "", [uris]).names(uris)


@given(PATHS)
def test_different_paths_have_different_ids(paths: set[str]) -> None:
    uris = [f"/d/{path}.png" for path in sorted(paths)]
    ids = ids_of(uris)
    assert len(set(ids)) == len(uris)
    assert ids_of([uri.replace("/d/", "/e/f/") for uri in uris]) == ids
    assert ids_of(uris[::-1]) == ids[::-1]


@given(PATHS)
def test_pieces_have_the_ids_of_the_whole(paths: set[str]) -> None:
    uris = [f"/d/{path}.png" for path in sorted(paths)]
    folder = None
    for uri in uris:
        folder = common_folder([uri], folder)
    ids = ImageIds.of(folder or "", [[uri] for uri in uris])
    assert [name for uri in uris for name in ids.names([uri])] == ids_of(uris)


def test_a_file_named_like_an_id_with_a_digest_gets_another_id() -> None:
    plain = f"/d/a-{short_digest('a.png')}.png"
    uris = ["/d/a.png", "/d/a.jpg", plain]
    ids = ids_of(uris)
    assert ids[0] == plain.removeprefix("/d/").removesuffix(".png")
    assert len(set(ids)) == 3
    assert ids_of(["/d/b.png", plain])[1] == ids[0]


def test_an_image_in_several_rows_has_one_id_without_digest() -> None:
    uris = ["/d/a.png", "", "/d/b.png", "/d/a.png", ""]
    ids = ImageIds.of("/d/", [uris[:2], uris[2:]])
    assert ids.names(uris) == ["a", "", "b", "a", ""]
    assert ids.repeated(["/d/a.png", "/d/b.png", ""]).tolist() == [True, False, False]


def test_two_spellings_of_a_uri_are_one_image() -> None:
    uris = ["s3://b/a(1).png", "s3://b/a%281%29.png", "s3://b/c.png"]
    ids = ImageIds.of("s3://b/", [uris])
    assert ids.repeated(uris).tolist() == [True, True, False]
    assert len(set(ids.names(uris))) == 2


@pytest.mark.parametrize(
    ("uris", "folder"),
    [
        ([], None),
        (["/a/b/c.png"], "/a/b/"),
        (["/a/b/c.png", "/a/bc.png"], "/a/"),
        (["/a/b/c.png", "/a/b"], "/a/"),
        (["s3://x/y/a.png", "s3://x/z.png"], "s3://x/"),
        (["/a.png", "s3://x/z.png"], ""),
    ],
)
def test_common_folder_contains_all_files(uris: list[str], folder: str | None) -> None:
    assert common_folder(uris) == folder
    assert common_folder(uris[1:], common_folder(uris[:1])) == folder
