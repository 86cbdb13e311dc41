"""Files are grouped by the folders above them, and masks are matched to images."""

import pytest

from lungseg.errors import InputError
from lungseg.ingest.sources.mask_matching import ONE_SIDED_MASK, group_by_dataset, match_masks, names_by_root


@pytest.mark.parametrize(
    ("path", "root", "image", "mask"),
    [
        ("a.png", "", "a", None),
        ("x/a.png", "", "x/a", None),
        ("images/a.png", "", "a", None),
        ("N/images/w/a.png", "N", "w/a", None),
        ("N/CXR_png/a.png", "N", "a", None),
        ("images/N/images/a.png", "images/N", "a", None),
        ("N/masks/w/a.png", "N", None, ("", "w/a")),
        ("N/mask/a.png", "N", None, ("", "a")),
        ("N/ManualMask/leftMask/a.png", "N", None, ("leftmask", "a")),
        ("N/ManualMask/rightMask/w/a.png", "N", None, ("rightmask", "w/a")),
        ("N/ManualMask/leftMask", "N", None, ("", "leftMask")),
    ],
)
def test_files_are_grouped_by_dataset_and_kind(
    path: str, root: str, image: str | None, mask: tuple[str, str] | None
) -> None:
    ((found_root, files),) = group_by_dataset("/d", [f"/d/{path}"]).items()
    assert found_root == root
    assert list(files.images) == ([image] if image else [])
    assert [(side, name) for side, masks in files.masks.items() for name in masks] == ([mask] if mask else [])


def test_images_of_one_name_get_masks_of_their_suffix() -> None:
    uris = [f"/d/{kind}/a.{suffix}" for kind in ("images", "masks") for suffix in ("png", "tif")]
    (files,) = group_by_dataset("/d", uris).values()
    assert files.same_name_images == [("a", "/d/images/a.tif")]
    assert files.mask_uris() == ["/d/masks/a.png", "/d/masks/a.tif"]
    assert [record.mask_uris for record in match_masks(files, "d", "/d")] == [("/d/masks/a.png",), ("/d/masks/a.tif",)]


@pytest.mark.parametrize(
    ("image", "ending", "mask"), [("a.jpg", "", "gif"), ("a.png", "_mask", "png"), ("a", "", "gif")]
)
def test_mask_with_the_image_suffix_is_preferred(image: str, ending: str, mask: str) -> None:
    files = [f"/d/images/{image}", *(f"/d/masks/a{ending}.{suffix}" for suffix in ("gif", "png"))]
    record, unused = match_masks(group_by_dataset("/d", files)[""], "d", "/d")
    assert record.mask_uris == (f"/d/masks/a{ending}.{mask}",)
    assert (unused.codes, unused.mask_uris) == (("unmatched_mask",), ())
    assert f"is not used, because a{ending}.{mask} has the same name" in unused.message


def test_only_roots_with_images_are_named() -> None:
    groups = group_by_dataset("/d", ["/d/N/images/a.png", "/d/S/masks/a.png", "/d/b.png"])
    assert names_by_root("/d", groups) == {"N": "n", "": "d"}


def test_record_with_one_mask_side_is_rejected() -> None:
    files = ["/d/images/a.png", "/d/ManualMask/leftMask/a.png"]
    (record,) = match_masks(group_by_dataset("/d", files)[""], "d", "/d")
    assert (record.status, record.codes, record.mask_classes) == ("rejected", (ONE_SIDED_MASK.code,), ("lung",))


def test_masks_that_fit_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"/d: no mask has the name of an image \(/d/masks/b.png\)"):
        match_masks(group_by_dataset("/d", ["/d/images/a.png", "/d/masks/b.png"])[""], "d", "/d")
