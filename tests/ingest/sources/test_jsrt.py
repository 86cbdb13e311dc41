"""JSRT with SCR masks is recognised by its file names."""

from pathlib import Path

import pytest

from lungseg.ingest import sources
from lungseg.ingest.sources import jsrt
from tests.ingest.sources.archive_files import fill

CLASSES = {
    "left lung": "lung",
    "right lung": "lung",
    "heart": "heart",
    "left clavicle": "clavicle",
    "right clavicle": "clavicle",
}
NODULES = "JPCLN001.IMG\t5\t15\t53\tFemale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\r"
NODULES += "JPCLN002.IMG\t5\t30\t?\tmale\t1621\t510\tbenign\tr.upper lobe\tof a female 90 relative"
OTHERS = "JPCNN001.IMG    62   male  non-nodule\r\nJPCNN002.IMG 97 female non-nodule\r\n"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = fill(
        tmp_path / "x",
        *(f"JSRT/All247images/JPC{kind}N00{number}.IMG" for kind in "LN" for number in (1, 2)),
        *(
            f"scratch/fold{2 - number % 2}/masks/{name}/JPC{kind}N00{number}.gif"
            for kind in "LN"
            for number in (1, 2)
            for name in CLASSES
        ),
        *("scratch/fold1/landmarks/JPCLN001.pfs", "scratch/README.txt"),
    )
    clinical = folder / "Clinical_Information"
    clinical.mkdir()
    (clinical / "CLNDAT_EN.txt").write_text(NODULES, newline="")
    (clinical / "CNNDAT_EN.TXT").write_text(OTHERS, newline="")
    return folder


def test_published_jsrt_is_recognised(archive: Path) -> None:
    records = sources.discover(str(archive))
    assert [(record.image_id, record.finding, record.age_group, record.sex) for record in records] == [
        ("JPCLN001", "nodule", "50-59", "female"),
        ("JPCLN002", "nodule", None, "male"),
        ("JPCNN001", "no_nodule", "60-69", "male"),
        ("JPCNN002", "no_nodule", "90+", "female"),
    ]
    for record in records:
        assert (record.dataset, record.patient_id, record.status) == ("jsrt", record.image_id, "ok")
        assert record.mask_classes == ("lung", "lung", "heart", "clavicle", "clavicle")
        assert [Path(uri).parent.name for uri in record.mask_uris] == list(CLASSES)
        assert {Path(uri).stem for uri in record.mask_uris} == {record.image_id}


def test_png_images_with_one_mask_file_or_none(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "images/jpcln001.png", "masks/JPCLN001_mask.png", "images/JPCNN093.png")
    records = sources.discover(str(folder))
    assert [(record.image_id, record.mask_classes) for record in records] == [("JPCLN001", ("lung",)), ("JPCNN093", ())]


def test_single_lung_is_rejected_but_not_a_single_heart(tmp_path: Path) -> None:
    folder = fill(tmp_path / "x", "JPCLN001.IMG", "masks/left_lung/JPCLN001.png", "JPCLN002.IMG")
    fill(folder, "masks/heart/JPCLN002.png", "masks/heart/JPCLN001.png")
    lung, heart = sources.discover(str(folder))
    assert (lung.status, lung.codes, lung.mask_classes) == ("rejected", ("one_sided_mask",), ("lung", "heart"))
    assert (heart.status, heart.mask_classes) == ("ok", ("heart",))


def test_other_file_names_are_not_claimed() -> None:
    files = ["/d/JPCLN01.IMG", "/d/JPCXN001.IMG", "/d/JPCLN001.pfs", "/d/xJPCLN001.IMG", "/d/a.png"]
    assert jsrt.recognise("/d", files) == []


def test_unreadable_clinical_file_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [f"{tmp_path}/JPCLN001.IMG", f"{tmp_path}/CLNDAT_EN.txt"]
    (record,) = jsrt.recognise(str(tmp_path), files)
    assert (record.sex, record.age_group, record.status) == (None, None, "ok")
    assert "age and sex stay unknown" in caplog.text
