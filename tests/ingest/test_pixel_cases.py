"""Given files whose header contradicts or lacks what their pixels need, and labels at full scale."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg.arrays import Grey
from lungseg.config import PreprocessSettings
from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.ingest import record_checks
from lungseg.schema import Record
from tests.imaging.dicom.dicom_files import write_dicom

SETTINGS = PreprocessSettings(size=256)


def opened(path: Path) -> tuple[Record, Grey]:
    record, image, _ = record_checks.open_record(Record(image_id="x", dataset="d", image_uri=str(path)))
    assert image is not None, record.message
    return record, image


def case(config: pytest.Config, folder: str, name: str) -> Path:
    path = (config.rootpath / ".." / "shared" / "cases" / folder / f"{name}.dcm").resolve()
    if not path.is_file():
        pytest.skip(f"the cases are not at hand: no file {path}")
    return path


# Given files


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("name", "codes"),
    [("junk-in-top-bits", ()), ("stored10-holds12", ("stored_bits",)), ("stored12-holds14", ("stored_bits",))],
)
def test_wrong_bits_give_the_picture_of_right_ones(
    pytestconfig: pytest.Config, name: str, codes: tuple[str, ...], number: int
) -> None:
    folder = "bits-stored-too-small"
    _, expected = opened(case(pytestconfig, folder, f"good12-{number}"))
    record, image = opened(case(pytestconfig, folder, f"{name}-{number}"))
    assert (record.status, record.codes, record.flags) == ("repaired" if codes else "ok", codes, ())
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    "name",
    ["BitsStored", "HighBit", "PhotometricInterpretation", "PixelRepresentation", "SamplesPerPixel"],
)
def test_missing_attributes_are_assumed_and_named(pytestconfig: pytest.Config, name: str) -> None:
    folder = "pixel-attribute-missing"
    complete = [opened(case(pytestconfig, folder, f"no-{other}"))[1] for other in ("HighBit", "SamplesPerPixel")]
    record, image = opened(case(pytestconfig, folder, f"no-{name}"))
    assert (record.status, record.codes, record.flags) == ("repaired", ("attribute_assumed",), ())
    assert f"{name} (" in record.message
    for other in complete:
        np.testing.assert_array_equal(image, other)


def test_padding_does_not_make_a_picture_signed(pytestconfig: pytest.Config) -> None:
    record, image = opened(case(pytestconfig, "pixel-attribute-missing", "no-PixelRepresentation-padded"))
    _, other = opened(case(pytestconfig, "pixel-attribute-missing", "no-PixelRepresentation"))
    assert record.codes == ("attribute_assumed",)
    assert "PixelRepresentation (0028,0103) = 0" in record.message
    inside = image > 0
    assert np.abs(image[inside].astype(int) - other[inside]).max() < 0.01 * 65535


# Labels


def written(folder: Path, pixels: NDArray[Any], kind: str) -> Path:
    path = folder / f"x.{kind}"
    path.write_bytes(write_dicom(pixels) if kind == "dcm" else cv2.imencode(f".{kind}", pixels)[1].tobytes())
    return path


def labelled(pixels: NDArray[Any], value: int, side: int = 24) -> NDArray[Any]:
    drawn = pixels.copy()
    drawn[20 : 20 + side, 20 : 20 + side] = value
    return drawn


@pytest.mark.parametrize("kind", ["png", "tiff", "dcm"])
@pytest.mark.parametrize("style", phantom.STYLES)
@pytest.mark.parametrize(
    ("levels", "offset", "marker"),
    [
        (1021, 0, 65535),
        (4096, 0, 65535),
        (1021, 0, 60000),
        (1021, 64000, 0),
        (400, 0, 65535),
        (4000, 30000, 65535),
        (4000, 30000, 0),
    ],
)
def test_a_label_beyond_the_picture_does_not_darken_it(
    tmp_path: Path, levels: int, offset: int, marker: int, style: phantom.Style, kind: str
) -> None:
    grey = phantom.draw(4, style, 256)[0]
    deep = np.rint(np.maximum(grey, 1) / 255 * (levels - 1) + offset).astype(np.uint16)
    record, image = opened(written(tmp_path, labelled(deep, marker), kind))
    assert (record.status, record.codes, record.flags) == ("repaired", ("narrow_range",), ())
    square = prepare_image(image, SETTINGS)[0].astype(float)
    away = labelled(np.ones(grey.shape, np.uint8), 0, 26) == 1
    assert np.corrcoef(square[away], grey[away])[0, 1] > 0.995
    assert np.ptp(np.percentile(square[away], [5, 95])) > 0.9 * np.ptp(np.percentile(grey[away], [5, 95]))


@pytest.mark.parametrize("marker", [255, 0])
def test_20_levels_beside_a_label_are_stretched(tmp_path: Path, marker: int) -> None:
    grey = phantom.draw(4, "montgomery", 256)[0]
    shallow = (grey // 13 + 100).astype(np.uint8)
    record, image = opened(written(tmp_path, labelled(shallow, marker), "png"))
    assert record.codes == ("narrow_range",)
    assert np.ptp(np.percentile(image, [5, 95])) > 150


@pytest.mark.parametrize("side", [12, 80])
def test_a_large_noisy_label_is_not_part_of_the_picture(tmp_path: Path, side: int) -> None:
    grey = phantom.draw(4, "montgomery", 256)[0]
    drawn = labelled((grey // 10).astype(np.uint8), 255, side)
    path = tmp_path / "x.jpg"
    path.write_bytes(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    record, image = opened(path)
    assert record.codes == ("narrow_range",)
    assert np.ptp(np.percentile(image[110:], [5, 95])) > 120


@pytest.mark.parametrize("border", [0, 65535])
def test_a_border_does_not_darken_a_low_picture(tmp_path: Path, border: int) -> None:
    grey = phantom.draw(4, "montgomery", 256)[0]
    low = (grey.astype(np.uint16) * 4)[8:-8, 8:-8]
    framed = np.pad(low, 8, constant_values=border)
    framed[100:120, 10:30] = 65535
    _, image = opened(written(tmp_path, framed, "png"))
    square = prepare_image(image, SETTINGS)[0]
    assert np.ptp(np.percentile(square[16:-16, 16:-16], [5, 95])) > 150


@pytest.mark.parametrize("levels", [256, 1021, 4096])
@pytest.mark.parametrize("border", [20000, 65535])
@pytest.mark.parametrize(("width", "sides"), [(3, "all"), (14, "right")])
def test_a_border_beyond_the_picture_does_not_darken_it(
    tmp_path: Path, levels: int, border: int, width: int, sides: str
) -> None:
    grey = phantom.draw(4, "montgomery", 256)[0]
    deep = np.rint(grey / 255 * (levels - 1)).astype(np.uint16)
    before = (width, width) if sides == "all" else (0, width)
    framed = np.pad(deep, (before if sides == "all" else (0, 0), before), constant_values=border)
    record, image = opened(written(tmp_path, framed, "png"))
    assert (record.status, record.codes, record.flags) == ("repaired", ("narrow_range",), ())
    inside = prepare_image(image, SETTINGS)[0][20:-20, 20:-20].astype(float)
    assert np.ptp(np.percentile(inside, [5, 95])) > 0.6 * np.ptp(np.percentile(grey, [5, 95]))


@pytest.mark.parametrize("levels", [256, 700])
def test_few_levels_at_a_high_offset_are_no_blank_picture(tmp_path: Path, levels: int) -> None:
    grey = phantom.draw(4, "shenzhen", 256)[0]
    deep = np.rint(np.maximum(grey, 1) / 255 * (levels - 1) + 30000).astype(np.uint16)
    record, image = opened(written(tmp_path, labelled(deep, 65535), "png"))
    assert (record.status, record.codes, record.flags) == ("repaired", ("narrow_range",), ())
    assert np.ptp(np.percentile(image[40:], [5, 95])) > 30000


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("style", phantom.STYLES)
def test_labels_within_the_depth_change_nothing(tmp_path: Path, style: phantom.Style, bits: int) -> None:
    grey = phantom.draw(4, style, 256)[0]
    deep = grey if bits == 8 else grey.astype(np.uint16) << (bits - 8)
    drawn = labelled(deep, 2**bits - 1)
    record, image = opened(written(tmp_path, drawn, "png"))
    assert (record.status, record.codes) == ("ok", ())
    np.testing.assert_array_equal(image, drawn)
