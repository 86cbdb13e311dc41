"""Masks in folders of usual names are matched, and masks of other structures are neither lungs nor X-rays."""

import logging
from pathlib import Path

import pytest

from lungseg.ingest import sources
from tests.ingest.sources.archive_files import fill, masks_by_id

_MASKS = ["lung masks", "lung_masks", "Lung-Mask", "labels", "labelsTr", "segmentations", "segmentation", "masks_png"]
_MASKS += ["annotations", "seg", "groundtruth", "gt", "mask", "Ground Truth", "MASKS"]


@pytest.mark.parametrize("masks", _MASKS)
@pytest.mark.parametrize("images", ["images", "img", "xrays", "CXR_png", "X-Rays"])
def test_usual_folder_names_are_matched(images: str, masks: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", f"{images}/a.png", f"{masks}/a.png", f"{images}/deep/b.png", f"{masks}/deep/b.PNG")
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("x", "a"): (f"{masks}/a.png",),
        ("x", "deep_b"): (f"{masks}/deep/b.PNG",),
    }


def test_covid_qu_ex_folders_are_matched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = "Infection Segmentation Data/Train/COVID-19"
    names = [f"{root}/{kind}/{name}.png" for kind in ("images", "lung masks", "infection masks") for name in "ab"]
    folder = fill(tmp_path / "x", *names)
    records = sources.discover(str(folder))
    usable = [record for record in records if record.usable]
    assert [record.mask_uris for record in usable] == [(f"{folder}/{root}/lung masks/{name}.png",) for name in "ab"]
    assert [record.codes for record in records if not record.usable] == [("other_mask",)] * 2
    assert "ignored 2 masks that are not of lungs by the name of their folder" in caplog.text


@pytest.mark.parametrize("masks", ["infection masks", "heart_masks", "lesion masks", "vessel masks", "masks/heart"])
def test_other_masks_are_no_images_and_no_lungs(masks: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fill(tmp_path / "x", "images/a.png", f"{masks}/a.png", f"{masks}/b.png")
    with caplog.at_level(logging.INFO, "lungseg"):
        records = sources.discover(str(folder))
    assert masks_by_id(folder, [record for record in records if record.usable]) == {("x", "a"): ()}
    assert [record.image_uri for record in records if record.codes == ("other_mask",)] == [
        f"{folder}/{masks}/{name}.png" for name in "ab"
    ]
    assert "ignored 2 masks" in caplog.text
    assert "of other types" not in caplog.text


@pytest.mark.parametrize(
    ("files", "ignored"),
    [
        (("a.txt", "b.txt"), "2 files of other types"),
        (("Thumbs.db",), "1 system file"),
        (("a.txt", "Thumbs.db"), "1 file of another type and 1 system file"),
    ],
)
def test_only_kinds_of_files_that_exist_are_counted(
    files: tuple[str, ...], ignored: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path / "x", "images/a.png", *files)
    with caplog.at_level(logging.INFO, "lungseg"):
        sources.discover(str(folder))
    assert caplog.messages == [f"{folder}: ignored {ignored}"]


def test_other_masks_of_montgomery_are_no_images(tmp_path: Path) -> None:
    names = ["CXR_png", "ManualMask/leftMask", "ManualMask/rightMask", "heart masks"]
    folder = fill(tmp_path / "m", *(f"{name}/MCUCXR_0001_0.png" for name in names))
    record, other = sources.discover(str(folder))
    assert len(record.mask_uris) == 2
    assert (other.dataset, other.codes) == (record.dataset, ("other_mask",))


@pytest.mark.parametrize("masks", ["lung masks", "Lung Mask", "masks"])
def test_jsrt_masks_in_other_folders_are_matched(masks: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "j", "JPCLN001.png", f"{masks}/JPCLN001.png", "infection masks/JPCLN001.png")
    record, _ = sources.discover(str(folder))
    assert (record.dataset, record.mask_uris) == ("jsrt", (f"{folder}/{masks}/JPCLN001.png",))


def test_sides_and_lungs_inside_a_mask_folder_are_joined(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "img/a.png", "masks/left lung/a.png", "masks/right lung/a.png", "masks/heart/a.png")
    records = [record for record in sources.discover(str(folder)) if record.usable]
    assert masks_by_id(folder, records) == {("x", "a"): ("masks/left lung/a.png", "masks/right lung/a.png")}


def test_equal_subfolders_of_images_and_masks_are_kept(tmp_path: Path) -> None:
    names = [f"{kind}/{group}/a.png" for kind in ("images", "masks") for group in ("COVID-19", "lung", "normal")]
    folder = fill(tmp_path / "x", *names)
    records = sources.discover(str(folder))
    assert [len(record.mask_uris) for record in records] == [1, 1, 1]


def test_subsets_in_folder_names_are_kept_apart(tmp_path: Path) -> None:
    names = [f"{subset}_{kind}/1.png" for subset in ("train", "test") for kind in ("images", "masks")]
    folder = fill(tmp_path / "x", *names)
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("x", "test_1"): ("test_masks/1.png",),
        ("x", "train_1"): ("train_masks/1.png",),
    }


def test_images_beside_a_mask_folder_are_matched(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "north/a.png", "north/lung masks/a.png", "south/b.png")
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("north", "a"): ("north/lung masks/a.png",),
        ("x", "south_b"): (),
    }


def test_folder_that_is_repeated_inside_itself_is_one(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/images/a.png", "masks/Masks/a.png")
    assert masks_by_id(folder, sources.discover(str(folder))) == {("x", "a"): ("masks/Masks/a.png",)}


def test_image_names_without_masks_keep_ids(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "p1/xray/a.png", "p2/xray/a.png", "Lung Segmentation/test/a.png")
    assert [(record.dataset, record.image_id) for record in sources.discover(str(folder))] == [
        ("x", "Lung_Segmentation_test_a-8a6964"),
        ("x", "p1_xray_a"),
        ("x", "p2_xray_a"),
    ]


@pytest.mark.parametrize(
    "other", ["images_without_masks", "no_masks", "patients with masks", "images removal of masks"]
)
def test_xrays_in_a_folder_without_masks_are_kept(other: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "masks/a.png", f"{other}/a.png")
    records = sources.discover(str(folder))
    assert [(record.usable, len(record.mask_uris)) for record in records] == [(True, 1), (True, 0)]


@pytest.mark.parametrize("masks", ["reader_A_masks", "consensus_masks", "unet_masks", "radiologist2_masks"])
def test_masks_with_an_unknown_word_are_used(masks: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", f"{masks}/a.png")
    assert masks_by_id(folder, sources.discover(str(folder))) == {("x", "a"): (f"{masks}/a.png",)}


def test_known_mask_folder_comes_before_an_unknown_one(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "consensus masks/a.png", "masks/a.png")
    record, other = sources.discover(str(folder))
    assert record.mask_uris == (f"{folder}/masks/a.png",)
    assert (other.image_uri, other.codes) == (f"{folder}/consensus masks/a.png", ("other_mask",))


def test_readers_masks_do_not_change_those_of_jsrt(tmp_path: Path) -> None:
    names = ["JPCLN001.png", "masks/JPCLN001.png", "reader A masks/JPCLN001.png", "masks/other.png"]
    folder = fill(tmp_path / "j", *names, "JPCLN002.png", "reader A masks/JPCLN002.png")
    records = sources.discover(str(folder))
    assert [record.mask_uris for record in records if record.usable] == [
        (f"{folder}/masks/JPCLN001.png",),
        (f"{folder}/reader A masks/JPCLN002.png",),
    ]
    rows = [record.image_uri for record in records] + [uri for record in records for uri in record.mask_uris]
    assert sorted(rows) == sorted(str(path) for path in folder.rglob("*.png"))
