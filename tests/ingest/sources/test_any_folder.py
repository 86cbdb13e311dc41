"""Folders become records: layouts, unusual names, and refused archives. Files are empty, because none is opened."""

import logging
import re
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from lungseg.errors import InputError
from lungseg.ingest import sources
from lungseg.ingest.record_checks import reject_duplicate_ids
from lungseg.schema import Record
from tests.ingest.sources.archive_files import fill, masks_by_id

Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, Form] = ("NFC", "NFD")

# Layouts


def test_images_are_matched_with_masks(tmp_path: Path) -> None:
    folder = fill(tmp_path / "Lung X", "images/b.png", "images/a.jpg", "masks/a.png", "masks/b_mask.png", "README.md")
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("lung_x", "a"): ("masks/a.png",),
        ("lung_x", "b"): ("masks/b_mask.png",),
    }


def test_images_may_have_no_masks(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "notes/a.txt")
    assert masks_by_id(folder, sources.discover(str(folder))) == {("x", "a"): ()}


def test_plain_folder_of_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "a.png", "ward 3/b.TIF", "ward 3/deep/c.jpeg", "ward 3/notes.pdf")
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("x", "a"): (),
        # Characters were replaced, so a digest of the name distinguishes `ward 3` from `ward_3`.
        ("x", "ward_3_b-9bce97"): (),
        ("x", "ward_3_deep_c-7a84d4"): (),
    }


def test_folder_of_several_datasets(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "all",
        *("North/images/a.png", "North/masks/a.png"),
        *("south/CXR_png/a.png", "south/ManualMask/leftMask/a.png", "south/ManualMask/rightMask/a.png"),
        *("west/images/a.png", ".git/images/a.png"),
    )
    assert masks_by_id(folder, sources.discover(str(folder))) == {
        ("north", "a"): ("North/masks/a.png",),
        ("south", "a"): ("south/ManualMask/leftMask/a.png", "south/ManualMask/rightMask/a.png"),
        ("west", "a"): (),
    }


def test_masks_follow_file_names_not_cleaned_ids(tmp_path: Path) -> None:
    names = ("a b", "a_b", "患", "者")
    folder = fill(tmp_path / "x", *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    records = reject_duplicate_ids(sources.discover(str(folder)))
    assert all(Path(record.image_uri).name == Path(record.mask_uris[0]).name for record in records)
    assert {record.status for record in records} == {"ok"}
    assert len({record.image_id for record in records}) == len(names)


def test_images_beside_datasets_are_kept(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "A/images/1.png", "A/masks/1.png", "B/2.png", "3.png")
    assert {Path(record.image_uri).name for record in sources.discover(str(folder))} == {"1.png", "2.png", "3.png"}


@pytest.mark.parametrize("names", [("g/A/images/1.png", "g/A/masks/1.png"), ("Images/1.png", "Masks/1.png")])
def test_masks_are_not_listed_as_images(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", *names)
    records = sources.discover(str(folder))
    assert [Path(record.image_uri).parent.name for record in records] == [Path(names[0]).parent.name]


def test_folders_with_equal_dataset_names_stay_distinct(tmp_path: Path) -> None:
    folders = ("Москва", "Киев", "Set", "set")
    folder = fill(tmp_path / "x", *(f"{name}/{kind}/p.png" for name in folders for kind in ("images", "masks")))
    records = reject_duplicate_ids(sources.discover(str(folder)))
    assert len({record.dataset for record in records}) == len(folders)
    assert {record.status for record in records} == {"ok"}


def test_innermost_images_folder_names_the_dataset(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/north/images/a.png", "images/north/mask/a.png")
    (record,) = sources.discover(str(folder))
    assert (record.dataset, record.image_id, len(record.mask_uris)) == ("images_north", "a", 1)


def test_ignored_files_and_unmatched_masks_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "images/b.txt", "masks/a.png", "masks/a.tif", "masks/z.png")
    with caplog.at_level(logging.INFO, "lungseg"):
        sources.discover(str(folder))
    assert "ignored 1 file of another type\n" in caplog.text
    assert "2 of 3 masks match no image" in caplog.text


def test_image_name_may_end_in_mask(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a_mask.png", "masks/a_mask.png")
    (record,) = sources.discover(str(folder))
    assert [Path(uri).name for uri in record.mask_uris] == ["a_mask.png"]


def test_any_two_folders_can_be_paired(tmp_path: Path) -> None:
    fill(tmp_path, "xrays/1/a.png", "xrays/2/a.png", "drawn/1/a.png", "drawn/2/a_mask.tiff", "drawn/3/a.png")
    assert masks_by_id(tmp_path, sources.pair_folders(str(tmp_path / "xrays"), str(tmp_path / "drawn"), "mine")) == {
        ("mine", "1_a"): ("drawn/1/a.png",),
        ("mine", "2_a"): ("drawn/2/a_mask.tiff",),
        ("mine", "3_a_unmatched_mask"): (),
    }
    assert masks_by_id(tmp_path, sources.pair_folders(str(tmp_path / "xrays"), "", "mine")) == {
        ("mine", "1_a"): (),
        ("mine", "2_a"): (),
    }


def test_dataset_name_can_be_given(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "masks/a.png")
    assert list(masks_by_id(folder, sources.discover(str(folder), "mine"))) == [("mine", "a")]


# Names


@pytest.mark.parametrize(
    "name",
    ["a b", "ümläut", "x.y.z", "a'b\"c", "a#1?", "100%", "[a]{b}", "a,b;c", "-a", "患者", "a\nb", "a..b", "\uff41"],
)
def test_unusual_names_give_safe_ids_and_match_masks(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", f"images/{name}/{name}.png", f"masks/{name}/{name}.png")
    (record,) = sources.discover(str(folder))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", record.image_id)
    assert record.image_uri == str(folder / "images" / name / f"{name}.png")
    assert record.mask_uris == (str(folder / "masks" / name / f"{name}.png"),)


@pytest.mark.parametrize("name", ["Ward 3", "Ümläut", "a.b", "患者", "2024-01"])
def test_dataset_name_is_safe(name: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / name, "images/a.png")
    assert re.fullmatch(r"[a-z0-9_-]+", sources.discover(str(folder))[0].dataset)


@pytest.mark.parametrize("name", ["Müller_01", "röntgen größe 2", "검사_03", "Ångström/é"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_two_unicode_forms_match(name: str, forms: tuple[Form, Form], tmp_path: Path) -> None:
    image, mask = (unicodedata.normalize(form, name) for form in forms)
    folder = fill(tmp_path / "x", f"images/{image}.png", f"masks/{mask}.png")
    (record,) = sources.discover(str(folder))
    assert record.image_uri == f"{folder}/images/{image}.png"
    assert record.mask_uris == (f"{folder}/masks/{mask}.png",)
    (paired,) = sources.pair_folders(f"{folder}/images", f"{folder}/masks", "x")
    assert paired.mask_uris == record.mask_uris


def test_files_that_differ_in_unicode_form_are_duplicates(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", *(f"images/{unicodedata.normalize(form, 'é')}.png" for form in FORMS))
    records = reject_duplicate_ids(sources.discover(str(folder)))
    assert len({record.image_id for record in records}) == 1
    assert sorted(record.status for record in records) == ["ok", "rejected"]


def test_ids_do_not_depend_on_the_archive_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "x", "images/ward/a.png", "masks/ward/a.png")
    monkeypatch.chdir(tmp_path)
    paths = [str(folder), f"{folder}/", "x", "./x/", folder.as_uri()]
    ids = {tuple(masks_by_id(folder, sources.discover(path))) for path in paths}
    assert ids == {(("x", "ward_a"),)}


def test_second_file_with_one_id_is_rejected(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "images/a.jpg", "images/b.png", "masks/a.png", "masks/b.png")
    records = reject_duplicate_ids(sources.discover(str(folder)))
    assert [(record.image_id, record.image_uri[-4:], record.status) for record in records] == [
        ("a", ".jpg", "ok"),
        ("a", ".png", "rejected"),
        ("b", ".png", "ok"),
    ]
    assert records[1].message.startswith("a.jpg already has the id a")


def test_equal_ids_in_two_datasets_are_no_duplicates(tmp_path: Path) -> None:
    folder = fill(tmp_path / "all", "n/images/a.png", "s/images/a.png")
    assert {record.status for record in reject_duplicate_ids(sources.discover(str(folder)))} == {"ok"}


def test_system_files_are_not_listed_as_images(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "x",
        *("images/a.png", "masks/a.png", "images/Thumbs.db", "images/.DS_Store", "images/._a.png", "masks/._a.png"),
        *(
            "__MACOSX/images/._a.png",
            "__MACOSX/._images",
            "images/.ipynb_checkpoints/a-checkpoint.png",
            "images/desktop.ini",
        ),
    )
    assert masks_by_id(folder, sources.discover(str(folder))) == {("x", "a"): ("masks/a.png",)}
    unpacked = fill(tmp_path / "zip", "set/images/a.png", "set/masks/a.png", "__MACOSX/images/._a.png")
    assert masks_by_id(unpacked, sources.discover(str(unpacked))) == {("set", "a"): ("set/masks/a.png",)}


def test_records_are_sorted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "all", *(f"{dataset}/images/{name}.png" for dataset in "bca" for name in ("2", "10", "1")))
    keys = [(record.dataset, record.image_id) for record in sources.discover(str(folder))]
    assert keys == sorted(keys)
    assert len(keys) == 9


def test_patient_id_defaults_to_the_image_id(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "images/CHNCXR_0001_0.png", "images/CHNCXR_1.png")
    records = sources.discover(str(folder))
    assert [record.patient_id for record in records] == [record.image_id for record in records]
    assert [record.finding for record in records] == ["normal", None, None]


# Refused archives


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope: no such folder"):
        sources.discover(str(tmp_path / "nope"))
    fill(tmp_path, "images/a.png")
    with pytest.raises(InputError, match="nope: no such folder"):
        sources.pair_folders(str(tmp_path / "images"), str(tmp_path / "nope"), "x")
    with pytest.raises(InputError, match="nope: no such folder"):
        sources.pair_folders(str(tmp_path / "nope"), "", "x")


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"a\.png: a file, expected a folder"):
        sources.discover(str(tmp_path / "a.png"))


@pytest.mark.parametrize("names", [[], ["readme.txt"], ["images/.a.png"], ["images/a.dcm.gz"], ["x/images/a.txt"]])
def test_folder_without_images_is_refused(names: list[str], tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", *names)
    folder.mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"no image in it; expected \.png"):
        sources.discover(str(folder))


def test_masks_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "images/b.png", "masks/a-lung.png")
    with pytest.raises(InputError, match=r"no mask has the name of an image.*NAME_mask\.png"):
        sources.discover(str(folder))


def test_empty_mask_folder_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png")
    (folder / "masks").mkdir()
    with pytest.raises(InputError, match="no mask in it"):
        sources.pair_folders(str(folder / "images"), str(folder / "masks"), "x")


# DICOM exports


def test_files_without_suffix_are_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "IM0001", "st/1.2.840.1", "st/1.2.840.2", "DICOMDIR", "README", "notes.v2", "st/x.")
    records = sources.discover(str(folder))
    assert [file_name(record) for record in records] == ["IM0001", "1.2.840.1", "1.2.840.2"]
    assert {record.status for record in reject_duplicate_ids(records)} == {"ok"}
    assert len({record.image_id for record in records}) == 3


def file_name(record: Record) -> str:
    return Path(record.image_uri).name


def test_dicom_names_match_masks(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/1.2.3", "images/1.2.4", "masks/1.2.3.png", "masks/1.2.4_mask.png")
    assert [len(record.mask_uris) for record in sources.discover(str(folder))] == [1, 1]
    records = sources.pair_folders(str(folder / "images"), str(folder / "masks"), "x")
    assert [len(record.mask_uris) for record in records] == [1, 1]


def test_masks_of_both_sides_have_the_class_lung(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", *(f"ManualMask/{side}Mask/a.png" for side in ("left", "right")), "CXR_png/a.png")
    assert sources.discover(str(folder))[0].mask_classes == ("lung", "lung")
    (folder / "CXR_png" / "b.png").touch()
    assert [record.mask_classes for record in sources.discover(str(folder))] == [("lung", "lung"), ()]


def test_paired_folders_ignore_system_files_and_set_findings(tmp_path: Path) -> None:
    fill(tmp_path, "i/CHNCXR_0001_1.png", "i/Thumbs.db", "i/README", "i/__MACOSX/a.png", "m/CHNCXR_0001_1.png")
    (record,) = sources.pair_folders(str(tmp_path / "i"), str(tmp_path / "m"), "x")
    assert (record.finding, record.mask_classes) == ("abnormal", ("lung",))


def test_masks_without_an_images_folder_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fill(tmp_path / "x", "a/images/1.png", "b/masks/1.png", "b/masks/2.png")
    records = sources.discover(str(folder))
    assert [(record.dataset, record.codes) for record in records] == [("a", ())] + [("a", ("unmatched_mask",))] * 2
    assert "b: 2 masks match no image" in caplog.text


def test_unmatched_masks_are_rejected_records(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/a.png", "lung masks/a.png", "lung masks/b.png", "lung masks/deep/c.png")
    records = sources.discover(str(folder))
    assert [record.image_uri.removeprefix(f"{folder}/") for record in records if not record.usable] == [
        "lung masks/b.png",
        "lung masks/deep/c.png",
    ]
    assert {record.codes for record in records} == {(), ("unmatched_mask",)}
    assert "mask b.png matches no image" in records[1].message
