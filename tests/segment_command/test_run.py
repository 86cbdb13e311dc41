"""lungseg segment as a whole: files, tables, output on the terminal, refusals, repetition."""

import csv
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.data import get_testdata_file

from lungseg import storage
from lungseg.config.segment import SegmentSettings
from lungseg.errors import InputError, LungsegError
from lungseg.imaging import codecs
from lungseg.predictions.parts import part_files, read_part
from lungseg.segment_command import outputs, run as command


def segment(out: Path, model: Path, *paths: Path, **options: object) -> None:
    words = tuple(map(str, paths))
    command.run(SegmentSettings.model_validate({"paths": words, "out": str(out), "model": str(model), **options}))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def images(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive / "south" / "images", tmp_path / "x-rays ü"))


def test_masks_and_rows_equal_those_of_infer(archive: Path, trained: Path, predicted: Path, tmp_path: Path) -> None:
    segment(tmp_path / "out", trained, archive)
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    bulk = {row["source_uri"]: row for part in part_files(str(predicted)) for row in read_part(part).to_pylist()}
    assert {row["source_uri"] for row in rows} == bulk.keys()
    for row in rows:
        expected = bulk[row["source_uri"]]
        assert row["mask"] == expected["mask"]
        assert row["model_name"] == expected["model_name"] == trained.name
        stored = cv2.imread(str(tmp_path / "out" / row["mask_file"]), cv2.IMREAD_UNCHANGED)
        assert codecs.encode_rle((stored == 255).astype(np.uint8)) == row["mask"]
        assert (tmp_path / "out" / row["overlay_file"]).exists()
    assert [row["source_uri"] for row in rows] == [row["source_uri"] for row in table(tmp_path / "out")]


def test_many_images_get_the_same_results(
    images: Path, trained: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(images / "south_00.png", "day/south_00.png")
        archive.writestr("day/broken.png", b"no image")
    paths = (images, tmp_path / "scans.zip")
    segment(tmp_path / "few", trained, *paths)
    monkeypatch.setattr(command, "FEW", 1)
    segment(tmp_path / "many", trained, *paths)
    assert files(tmp_path / "few") == files(tmp_path / "many")
    few, many = (pq.read_table(tmp_path / name / "predictions.parquet").to_pylist() for name in ("few", "many"))
    names = ("mask", "status", "codes", "message", "image_id", "dataset", "mask_file", "area_px")
    assert [[row[name] for name in names] for row in few] == [[row[name] for name in names] for row in many]
    for path in files(tmp_path / "few"):
        if path.startswith("masks/"):
            assert (tmp_path / "few" / path).read_bytes() == (tmp_path / "many" / path).read_bytes()


def test_broken_images_are_rows_with_a_reason(
    images: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "notes.png").write_text("text")
    segment(tmp_path / "out", trained, images)
    last = table(tmp_path / "out")[-1]
    assert (last["rank"], last["status"], last["codes"], last["mask_file"]) == ("", "rejected", "undecodable", "")
    output = capsys.readouterr().out
    assert "no mask: notes.png is not a PNG" in output
    assert "3 of 4 images segmented, 1 without a mask" in output
    with pytest.raises(LungsegError, match="lost: 1 rejected image"):
        segment(tmp_path / "out", trained, images, strict=True)


def test_an_output_without_any_mask_is_an_error(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(InputError, match="no image could be segmented"):
        segment(tmp_path / "out", trained, tmp_path / "a.png")
    assert table(tmp_path / "out")[0]["message"].startswith("a.png is not a PNG")


def test_flagged_images_come_first(
    images: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128), np.uint8)
    cv2.imwrite(str(images / "z.png"), noise)
    segment(tmp_path / "out", trained, images)
    assert table(tmp_path / "out")[0]["source_uri"].endswith("z.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("z.png")
    assert any(line.startswith("look first at: z.png") for line in lines)


def test_all_formats_are_written(images: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment(tmp_path / "out", trained, images, formats=("lung-masks", "dicom-seg"))
    row = table(tmp_path / "out")[0]
    sides = [cv2.imread(str(tmp_path / "out" / row[f"{side}_mask_file"]), -1) for side in ("right", "left")]
    assert [str(np.count_nonzero(side)) for side in sides] == [row["right_lung_px"], row["left_lung_px"]]
    assert "none of the segmented images is a DICOM file" in caplog.text


def test_dicom_segmentations_of_zipped_images_are_written(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = get_testdata_file("RG1_UNCI.dcm")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(str(source), "ward/chest.dcm")
    options = {"formats": ("dicom-seg",)}
    segment(tmp_path / "out", trained, tmp_path / "scans.zip", **options, include_doubtful=True)
    assert pydicom.dcmread(tmp_path / "out" / "dicom-seg" / "ward" / "chest.dcm").Modality == "SEG"
    segment(tmp_path / "out", trained, tmp_path / "scans.zip", **options)  # the tiny model's mask of it is flagged
    assert f"no dicom-seg: {tmp_path}/scans.zip/ward/chest.dcm is flagged" in caplog.text
    assert not (tmp_path / "out" / "dicom-seg" / "ward" / "chest.dcm").exists()


def test_a_second_command_replaces_the_results(images: Path, trained: Path, tmp_path: Path) -> None:
    out = images / "out"
    segment(out, trained, images)
    first = files(out)
    cv2.imwrite(str(images / "new.png"), cv2.imread(str(images / "south_00.png")))
    segment(out, trained, images, formats=("masks",))
    assert files(out) == {path for path in first if not path.startswith("overlays/")} | {"masks/new.png"}


def test_an_interruption_leaves_whole_files(
    images: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, calls = tmp_path / "out", outputs.Outputs.write, iter(range(10))

    def interrupted(*args: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return write(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Outputs, "write", interrupted)
        with pytest.raises(KeyboardInterrupt) as interruption:
            segment(out, trained, images)
    assert interruption.value.__notes__ == [
        f"{out} has the files of 2 of 3 images, and no table; the same command segments all of them again"
    ]
    masks = list((out / "masks").iterdir())
    assert len(masks) == 2
    assert all(cv2.imread(str(path), -1) is not None for path in masks)
    segment(out, trained, images)
    assert len(table(out)) == 3
    assert not (out / ".working").exists()


def test_other_images_or_foreign_folders_are_refused(images: Path, trained: Path, tmp_path: Path) -> None:
    segment(tmp_path / "out", trained, images / "south_00.png")
    with pytest.raises(InputError, match=r"has results of other X-rays \(first: .*south_00.png\)"):
        segment(tmp_path / "out", trained, images / "south_01.png")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(images / "south_01.png", "a.png")
    with pytest.raises(InputError, match="has results of other X-rays"):
        segment(tmp_path / "out", trained, tmp_path / "scans.zip")
    assert not (tmp_path / "out" / ".working").exists()
    (tmp_path / "mine" / "masks").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has masks, but no segment\.json"):
        segment(tmp_path / "mine", trained, images)
    with pytest.raises(InputError, match="is one of the inputs"):
        segment(images, trained, images)
    with pytest.raises(InputError, match="a file, expected a folder"):
        segment(images / "south_00.png", trained, images)


def test_a_model_that_is_not_installed_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no installed model"):
        segment(tmp_path / "out", Path("nonesuch"), images)
    assert not (tmp_path / "out").exists()


def test_results_are_written_to_a_bucket(images: Path, trained: Path, bucket: str) -> None:
    out = f"{bucket}/out"
    command.run(SegmentSettings(paths=(str(images),), out=out, model=str(trained), formats=("masks",)))
    names = [storage.name_of(path) for path in storage.list_files(out)]
    assert names == [
        "south_00.png",
        "south_01.png",
        "south_02.png",
        "predictions.csv",
        "predictions.parquet",
        "segment.json",
    ]
