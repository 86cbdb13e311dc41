"""Shenzhen and Montgomery are recognised as published and as merged on Kaggle, with their clinical readings."""

from collections import Counter
from pathlib import Path

import pytest

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest import sources
from lungseg.ingest.record_checks import reject_duplicate_ids
from tests.ingest.sources.archive_files import fill, masks_by_id


def test_published_montgomery_is_recognised(tmp_path: Path) -> None:
    names = ["MCUCXR_0001_0", "MCUCXR_0104_1"]
    folder = fill(
        tmp_path / "MontgomerySet",
        *(
            f"{kind}/{name}.png"
            for name in names
            for kind in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")
        ),
        *(f"ClinicalReadings/{name}.txt" for name in names),
        *("NLM-MontgomeryCXRSet-ReadMe.pdf", "CXR_png/Thumbs.db", "ManualMask/leftMask/Thumbs.db"),
    )
    records = sources.discover(str(folder))
    assert masks_by_id(folder, records) == {
        ("montgomeryset", name): (f"ManualMask/leftMask/{name}.png", f"ManualMask/rightMask/{name}.png")
        for name in names
    }
    assert [record.finding for record in records] == ["normal", "abnormal"]
    assert {record.status for record in records} == {"ok"}


def test_montgomery_image_with_one_mask_side_is_rejected(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "m",
        *("CXR_png/MCUCXR_0001_0.png", "CXR_png/MCUCXR_0002_0.png", "CXR_png/MCUCXR_0003_0.png"),
        *("ManualMask/leftMask/MCUCXR_0001_0.png", "ManualMask/rightMask/MCUCXR_0001_0.png"),
        *("ManualMask/leftMask/MCUCXR_0002_0.png",),
    )
    both, left, none = sources.discover(str(folder))
    assert (both.status, len(both.mask_uris)) == ("ok", 2)
    assert (left.status, len(left.mask_uris)) == ("rejected", 1)
    assert left.codes == ("one_sided_mask",)
    assert (none.status, none.mask_uris) == ("ok", ())


def test_missing_right_mask_folder_rejects_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "m", "CXR_png/a.png", "ManualMask/leftMask/a.png")
    (record,) = sources.discover(str(folder))
    assert (record.status, record.codes) == ("rejected", ("one_sided_mask",))


def test_montgomery_without_matching_masks_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "m", "CXR_png/a.png", "ManualMask/leftMask/b.png", "ManualMask/rightMask/b.png")
    with pytest.raises(InputError, match="no mask has the name of an image"):
        sources.discover(str(folder))


KAGGLE = (
    *("CXR_png/CHNCXR_0001_0.png", "masks/CHNCXR_0001_0_mask.png"),
    *("CXR_png/CHNCXR_0401_1.png", "masks/CHNCXR_0401_1_mask.png"),
    "CXR_png/CHNCXR_0025_0.png",
    *("CXR_png/MCUCXR_0104_1.png", "masks/MCUCXR_0104_1.png"),
    "ClinicalReadings/CHNCXR_0001_0.txt",
    "test/CHNCXR_0003_0.png",
)


@pytest.mark.parametrize("inside", ["", "Lung Segmentation"])
def test_kaggle_folder_is_split_by_hospital(inside: str, tmp_path: Path) -> None:
    # Kaggle's test images without masks are beside the two folders; they are listed too.
    prefix, digest = ("Lung_Segmentation_", "-c65999") if inside else ("", "")
    folder = fill(tmp_path / "data" / inside, *KAGGLE)
    records = sources.discover(str(tmp_path / "data"))
    assert masks_by_id(folder, records) == {
        ("montgomery", "MCUCXR_0104_1"): ("masks/MCUCXR_0104_1.png",),
        ("shenzhen", "CHNCXR_0001_0"): ("masks/CHNCXR_0001_0_mask.png",),
        ("shenzhen", "CHNCXR_0025_0"): (),
        ("shenzhen", "CHNCXR_0401_1"): ("masks/CHNCXR_0401_1_mask.png",),
        ("data", f"{prefix}test_CHNCXR_0003_0{digest}"): (),
    }
    records = [record for record in records if record.dataset != "data"]
    assert {record.image_id[-1]: record.finding for record in records} == {"0": "normal", "1": "abnormal"}


def test_named_kaggle_folder_stays_one_dataset(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", *KAGGLE)
    assert {record.dataset for record in sources.discover(str(folder), "merged")} == {"merged"}


def test_folder_of_one_hospital_keeps_its_name(tmp_path: Path) -> None:
    folder = fill(tmp_path / "Mine", "images/CHNCXR_0001_0.png", "images/CHNCXR_0002_1.png")
    assert {record.dataset for record in sources.discover(str(folder))} == {"mine"}


# Real data


def test_real_archive_is_listed_completely(cxr256: Path) -> None:
    records = sources.discover(str(cxr256))
    assert len(records) == 688
    assert Counter((record.dataset, record.finding) for record in records) == {
        ("shenzhen", "abnormal"): 287,
        ("shenzhen", "normal"): 263,
        ("montgomery", "abnormal"): 58,
        ("montgomery", "normal"): 80,
    }
    assert all(len(record.mask_uris) == 1 for record in records)
    assert all(record.status == "ok" for record in reject_duplicate_ids(records))


# Clinical readings


def write_reading(folder: Path, name: str, text: str | bytes) -> None:
    path = folder / "ClinicalReadings" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_only_age_and_sex_are_taken_from_readings(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", *(f"CXR_png/{name}.png" for name in ("CHNCXR_0001_0", "CHNCXR_0002_1")))
    fill(folder, "CXR_png/MCUCXR_0001_0.png", "CXR_png/MCUCXR_0002_1.png", "CXR_png/MCUCXR_0003_0.png")
    write_reading(folder, "CHNCXR_0001_0", "male 45yrs\nleft upper PTB of Mr Wu")
    write_reading(folder, "CHNCXR_0002_1", "\ufeffFemale, 9 months\r\nnormal")
    write_reading(folder, "MCUCXR_0001_0", "Patient's Sex: F\nPatient's Age: 027Y\nnormal male heart, 80 years\n")
    write_reading(folder, "MCUCXR_0002_1", b"\xff\x00garbage")
    write_reading(folder, "MCUCXR_9999_1", "of no image")
    records = sources.discover(str(folder))
    assert [(record.dataset, record.age_group, record.sex, record.finding) for record in records] == [
        ("montgomery", "20-29", "female", "normal"),
        ("montgomery", None, None, "abnormal"),
        ("montgomery", None, None, "normal"),
        ("shenzhen", "40-49", "male", "normal"),
        ("shenzhen", "0-9", "female", "abnormal"),
    ]
    assert "Wu" not in repr(records)


def test_readings_are_matched_within_their_dataset(tmp_path: Path) -> None:
    for name, text in (("a", "male 45yrs"), ("b", "female 15yrs")):
        fill(tmp_path / "x" / name, "CXR_png/CHNCXR_0001_0.png")
        write_reading(tmp_path / "x" / name, "CHNCXR_0001_0", text)
    records = sources.discover(str(tmp_path / "x"))
    assert [(record.dataset, record.sex, record.age_group) for record in records] == [
        ("a", "male", "40-49"),
        ("b", "female", "10-19"),
    ]


def test_unreadable_readings_give_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"CHNCXR_{number:04d}_0" for number in range(1, 6)]
    folder = fill(tmp_path / "x", *(f"CXR_png/{name}.png" for name in names))
    for name in names:
        write_reading(folder, name, "male 45yrs")
    read_bytes = storage.read_bytes

    def read(path: str) -> bytes:
        if path.endswith(("0002_0.txt", "0004_0.txt")):
            raise InputError(f"{path}: cannot be read")
        return read_bytes(path)

    monkeypatch.setattr(storage, "read_bytes", read)
    records = sources.discover(str(folder))
    assert [record.sex for record in records] == ["male", None, "male", None, "male"]
    assert {record.status for record in records} == {"ok"}
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "2 of 5 clinical readings cannot be read" in warning.getMessage()


def test_only_readings_of_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "x", "CXR_png/CHNCXR_0001_0.png", "CXR_png/CHNCXR_0002_0.png")
    write_reading(folder, "CHNCXR_0001_0", "male 45yrs")
    write_reading(folder, "CHNCXR_0003_0", "male 45yrs")
    read: list[str] = []
    monkeypatch.setattr(storage, "read_bytes", lambda path: read.append(Path(path).stem) or b"female 30yrs")
    assert [record.sex for record in sources.discover(str(folder))] == ["female", None]
    assert read == ["CHNCXR_0001_0"]


def test_unmatched_masks_are_logged_and_do_not_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Kaggle's test images are in no images folder; other masks that match no image must not stop them.
    folder = fill(tmp_path / "data", *KAGGLE, "masks/CHNCXR_0999_0_mask.png")
    records = sources.discover(str(folder))
    (unmatched,) = [record for record in records if not record.usable]
    assert (unmatched.codes, unmatched.dataset, len(records)) == (("unmatched_mask",), "shenzhen", 6)
    assert "masks match no image" in caplog.text
