"""Results of single X-rays: areas, flags, overlays, files."""

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from lungseg.arrays import U8
from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.errors import ImageError, InputError, SettingsError
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.items import OpenedImage, Prediction
from lungseg.inference.result import FileKind, Result
from lungseg.inference.rows import make_row_and_mask
from lungseg.ingest.reason_codes import Note, reject
from lungseg.schema import Record

SHARED = {"threshold": 0.5, "model_name": "lungs", "model": "0123456789abcdef"}


def lungs(height: int = 240, width: int = 200) -> U8:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 5 : -height // 5, width // 8 : width * 3 // 8] = 1
    mask[height // 4 : -height // 4, width * 5 // 8 : width * 7 // 8] = 1
    return mask


def result_of(
    mask: U8, file: str | bytes | None = None, orientation: int = 1, spacing_mm: float | None = None
) -> Result:
    """Create the result of a picture whose square is predicted with a mask."""
    image = (160 - 90 * mask).astype(np.uint8)
    settings = PreprocessSettings(size=64)
    square, geometry = prepare_image(image, settings, orientation)
    probability = prepare_image(mask * np.uint8(255), settings)[0].astype(np.float32) / 255
    uri = file if isinstance(file, str) else "image"
    height, width = mask.shape if orientation < 5 else mask.shape[::-1]
    record = Record("film", "", uri, height=height, width=width, spacing_mm=spacing_mm)
    row, upright_mask = make_row_and_mask(
        OpenedImage(record, square, geometry), Prediction(probability[None], 1, False), SHARED, PostprocessSettings()
    )
    assert upright_mask is not None
    return Result(row, image, upright_mask.to_mask(), probability[None], geometry, file)


@pytest.fixture
def result() -> Result:
    return result_of(lungs())


def test_areas_are_those_of_the_lungs(result: Result) -> None:
    areas = result.areas_px
    assert areas == {"right": result.right.sum(), "left": result.left.sum(), "both": result.mask.sum()}
    assert areas["right"] == pytest.approx(50 * 144, rel=0.05)
    assert (result.spacing_mm, result.areas_cm2) == (None, None)


def test_areas_in_cm2_need_a_spacing() -> None:
    result = result_of(lungs(), spacing_mm=0.5)
    assert result.spacing_mm == 0.5
    assert result.areas_cm2 == {side: pytest.approx(pixels / 400) for side, pixels in result.areas_px.items()}


def test_flags_have_sentences() -> None:
    one_sided = lungs()
    one_sided[:, 100:] = 0
    result = result_of(one_sided)
    assert result.flags == ("lungs_one_side",)
    assert result.flag_texts[0].startswith("The predicted mask has one lung")
    assert not result.left.any()
    assert result.doubt_reason.startswith("The predicted mask has one lung")


def test_overlay_has_a_colour_for_each_lung(result: Result) -> None:
    overlay = result.overlay().astype(int)
    assert overlay.shape == (240, 200, 3)
    is_orange = overlay[..., 0] - overlay[..., 2] > 100
    is_green = overlay[..., 1] - overlay[..., 0] > 100
    assert is_orange[:, :100].any()
    assert not is_orange[:, 100:].any()
    assert is_green[:, 100:].any()
    assert not is_green[:, :100].any()
    assert result.overlay(120).shape == (120, 100, 3)


def test_overlay_is_upright_and_masks_are_as_stored() -> None:
    result = result_of(lungs(), orientation=6)
    assert result.mask.shape == result.right.shape == result.probability.shape == (200, 240)
    assert result.overlay().shape == (240, 200, 3)


def test_mask_and_overlay_are_saved(result: Result, tmp_path: Path) -> None:
    saved = result.save(tmp_path)
    assert saved == str(tmp_path / "film.mask.png")
    assert (cv2.imread(saved, cv2.IMREAD_UNCHANGED) == result.mask * 255).all()
    overlay = cv2.imread(result.save(tmp_path / "new" / "x.png", "overlay"))
    assert (overlay[..., ::-1] == result.overlay()).all()


@pytest.mark.parametrize("as_bytes", [True, False])
def test_dicom_segmentation_is_saved(as_bytes: bool, tmp_path: Path) -> None:
    path = str(get_testdata_file("RG1_UNCR.dcm"))
    source = pydicom.dcmread(path)
    file = Path(path).read_bytes() if as_bytes else path
    result = result_of(lungs(source.Rows, source.Columns), file)
    saved = pydicom.dcmread(result.save(tmp_path, "dicom-seg", include_doubtful=True))
    assert [str(segment.SegmentLabel) for segment in saved.SegmentSequence] == ["Right lung", "Left lung"]
    assert saved.pixel_array.sum() == result.mask.sum()


def test_doubtful_dicom_segmentations_are_held_back_unless_asked_for(tmp_path: Path) -> None:
    path = str(get_testdata_file("RG1_UNCR.dcm"))
    source = pydicom.dcmread(path)
    result = result_of(lungs(source.Rows, source.Columns), path)
    flagged = replace(result, row={**result.row, "flags": ["lungs_implausible"]})
    unusual = replace(result, row={**result.row, "flags": [], "doubt": 0.2}, max_doubt=0.1)
    for held_back, message in ((flagged, r"is flagged \(lungs_implausible\)"), (unusual, "has the doubt 0.200")):
        with pytest.raises(ImageError, match=f"{message}.*include_doubtful=True"):
            held_back.save(tmp_path, "dicom-seg")
        assert not list(tmp_path.iterdir())
        held_back.save(tmp_path, "mask")
        Path(held_back.save(tmp_path, "dicom-seg", include_doubtful=True)).unlink()
        Path(tmp_path / "film.mask.png").unlink()


def test_pixels_have_no_dicom_segmentation(result: Result, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^film was passed as pixels"):
        result.save(tmp_path, "dicom-seg")
    assert not list(tmp_path.iterdir())


def test_image_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(b"image")
    result = result_of(lungs(), str(path))
    with pytest.raises(InputError, match="is the image: pass another file"):
        result.save(path)
    assert path.read_bytes() == b"image"


@pytest.mark.parametrize(("name", "kind"), [("mask.jpg", "mask"), ("new-folder", "mask"), ("x.dcm", "overlay")])
def test_other_endings_are_refused(result: Result, tmp_path: Path, name: str, kind: FileKind) -> None:
    with pytest.raises(SettingsError, match=r"pass an existing local folder, or a file that ends in \.png"):
        result.save(tmp_path / name, kind)
    assert not list(tmp_path.iterdir())


def test_unknown_kind_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="kind 'nifti': expected mask, overlay, dicom-seg"):
        result.save(tmp_path, "nifti")  # type: ignore[arg-type]


def test_result_is_shown_in_one_short_line(result: Result) -> None:
    shown = repr(result)
    assert shown.startswith("Result(image_id='film', status='ok', area_px=")
    assert len(shown) < 200
    assert "\n" not in shown


def test_result_survives_pickle(result: Result) -> None:
    copy = pickle.loads(pickle.dumps(result))
    assert copy.row == result.row
    assert (copy.probability == result.probability).all()
    assert (copy.overlay() == result.overlay()).all()


@pytest.mark.parametrize("kind", ["mask", "overlay", "dicom-seg"])
def test_rejected_image_saves_nothing(kind: FileKind, tmp_path: Path) -> None:
    opened = OpenedImage(reject(Record("film", "", "film.png"), Note("blank", "film.png is black")))
    result = Result(make_row_and_mask(opened, None, SHARED, PostprocessSettings())[0], file=b"")
    assert (result.ok, result.doubt, result.doubt_reason, result.flags) == (False, None, "", ())
    for name in ("mask", "right", "left", "probability", "areas_px", "areas_cm2"):
        with pytest.raises(ImageError, match=r"^film\.png is black"):
            getattr(result, name)
    with pytest.raises(ImageError, match="is black"):
        result.save(tmp_path, kind)
    assert not list(tmp_path.iterdir())
