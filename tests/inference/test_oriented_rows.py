"""Rows of images with an orientation tag: masks of the stored pixels, sides and metrics of the upright picture."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from lungseg import storage
from lungseg.config import ExportSettings, PostprocessSettings, PreprocessSettings
from lungseg.config.class_names import LUNG_SIDES
from lungseg.dataset import catalog
from lungseg.export import writers
from lungseg.export.overlay_file import draw_overlay
from lungseg.imaging import codecs
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.orientation import to_stored, to_upright
from lungseg.inference import recompute
from lungseg.inference.comparison import COMPARED
from lungseg.inference.items import Item, OpenedImage, Prediction, open_item, prepared_item
from lungseg.inference.rows import make_row
from lungseg.ingest import sources
from lungseg.predictions import overlays
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import Record, table
from tests.imaging.dicom.dicom_files import write_dicom

U8 = NDArray[np.uint8]
Row = dict[str, Any]
DrawPair = Callable[[int, int, int], tuple[U8, U8]]
SMALL = PreprocessSettings(size=64)
SHARED = {"threshold": 0.5, "model_name": "lungs", "model": "0123456789abcdef"}
ALL = range(1, 9)
SAME_UPRIGHT = (
    *("area_px", "right_lung_px", "left_lung_px", "components", "components_before", "removed_px", "added_px"),
    *("mean_probability", "border_entropy", "doubt", "doubt_reason", *COMPARED),
)


@pytest.fixture(scope="module")
def drawn(draw_pair: DrawPair) -> tuple[U8, U8]:
    """A picture 96 x 120 whose lungs differ, so that mirroring shows."""
    image, mask = draw_pair(3, 96, 120)
    image[mask == 0] //= 2
    image[mask == 0] += 128
    lower_left = np.s_[60:, 60:]
    image[lower_left] = np.where(mask[lower_left] == 1, 170, image[lower_left])
    mask[lower_left] = 0
    return image, mask


def save(path: Path, array: U8, orientation: int = 1, kind: str = "PNG") -> str:
    block = Image.Exif()
    block[274] = orientation
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, exif=block)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    return str(path)


def row_of(opened: OpenedImage) -> Row:
    """Predict with a stub: dark is lung."""
    assert opened.square is not None
    dark = cv2.GaussianBlur(np.asarray((opened.square < 110) & (opened.square > 0), np.float32), (0, 0), 1.0)
    return make_row(opened, Prediction(np.asarray(dark)[None], 1, False), SHARED, PostprocessSettings())


def predict(image_uri: str, mask_uri: str = "") -> Row:
    masks = (mask_uri,) if mask_uri else ()
    return row_of(open_item(Item(Record("x", "d", image_uri, masks, ("lung",) * len(masks))), SMALL))


def mask_of(row: Row) -> U8:
    return codecs.decode_rle(row["mask"], row["height"], row["width"])


@pytest.mark.parametrize("orientation", ALL)
def test_mask_is_that_of_the_stored_pixels(tmp_path: Path, drawn: tuple[U8, U8], orientation: int) -> None:
    image, lungs = drawn
    stored = to_stored(image, orientation)
    uri = save(tmp_path / "x.jpg", stored, orientation, "JPEG")
    row = predict(uri, save(tmp_path / "m.png", lungs * np.uint8(255)))
    upright = save(tmp_path / "upright.png", codecs.decode(Path(uri).read_bytes(), "x").astype(np.uint8))
    expected = predict(upright, save(tmp_path / "m.png", lungs * np.uint8(255)))
    assert expected["right_lung_px"] > 1.3 * expected["left_lung_px"] > 0
    assert expected["dice"] > 0.5
    assert (row["height"], row["width"]) == stored.shape
    np.testing.assert_array_equal(mask_of(row), to_stored(mask_of(expected), orientation))
    assert {name: row[name] for name in SAME_UPRIGHT} == pytest.approx({name: expected[name] for name in SAME_UPRIGHT})
    rows, columns = np.nonzero(mask_of(row))
    assert row["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert (row["centroid_x_px"], row["centroid_y_px"]) == pytest.approx((columns.mean(), rows.mean()))
    assert row["codes"] == ([] if orientation == 1 else ["orientation_tag"])
    assert row["status"] == ("ok" if orientation == 1 else "repaired")
    assert ("orientation tag of x.jpg states that the stored picture is " in row["message"]) == (orientation != 1)


@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_verification_accepts_rows_of_tagged_images(tmp_path: Path, drawn: tuple[U8, U8], orientation: int) -> None:
    image, lungs = drawn
    uri = save(tmp_path / "x.png", to_stored(image, orientation), orientation)
    row = predict(uri, save(tmp_path / "m.png", to_stored(lungs, orientation) * np.uint8(255), orientation))
    (row,) = table([row], PREDICTIONS).to_pylist()
    assert row["dice"] is not None
    assert recompute.check_row(row, SHARED, SMALL, recompute.Samples()) == []
    changed = {**row, "geometry": json.dumps({**json.loads(row["geometry"]), "orientation": 1})}
    assert recompute.check_row(changed, SHARED, SMALL, recompute.Samples()) != []


@pytest.mark.parametrize("orientation", [1, 4, 6])
def test_prepared_data_give_the_same_mask(tmp_path: Path, drawn: tuple[U8, U8], orientation: int) -> None:
    image, lungs = drawn
    archive = tmp_path / "archive"
    for name in ("a", "b"):
        uri = save(archive / "images" / f"{name}.png", to_stored(image, orientation), orientation)
        mask_uri = save(archive / "masks" / f"{name}.png", to_stored(lungs, orientation) * np.uint8(255))
    out = str(tmp_path / "prepared")
    dataset_writer.write_datasets(plan_shards(sources.discover(str(archive)), out, SMALL))
    data = catalog.open_dataset(catalog.find_datasets([out])[0])
    row = row_of(open_item(prepared_item(data.folder, data.index.to_pylist()[0]), SMALL))
    direct = predict(uri, mask_uri)
    same = ("height", "width", "mask", "bbox", "right_lung_px", "geometry", "status")
    assert {name: row[name] for name in same} == {name: direct[name] for name in same}
    assert row["dice"] == pytest.approx(direct["dice"], abs=0.02)  # its reference is restored from the square
    assert ("orientation_tag" in row["codes"]) == (orientation != 1)
    (record, *_) = storage.read_table(storage.join(data.folder, "manifest.parquet")).to_pylist()
    assert record["orientation"] == orientation
    assert (record["height"], record["width"]) == to_stored(image, orientation).shape


def test_exported_mask_is_stored_and_overlay_upright(tmp_path: Path, drawn: tuple[U8, U8]) -> None:
    row = {**predict(save(tmp_path / "x.png", to_stored(drawn[0], 6), 6)), "dice": None}
    settings = ExportSettings(formats=("masks",))
    (content,) = writers.encode_row(row, "masks", mask_of(row), settings)
    np.testing.assert_array_equal(codecs.decode_mask(content, "mask"), mask_of(row))
    (content,) = writers.encode_row(row, "overlays", mask_of(row), settings)
    sides = dict(zip(LUNG_SIDES, split_sides(to_upright(mask_of(row), 6)), strict=True))
    expected = draw_overlay(drawn[0], sides, {}, settings.overlay_px)
    overlay = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert overlay is not None
    np.testing.assert_array_equal(overlay[-expected.shape[0] :, :, ::-1], expected)  # a caption is above


def test_report_draws_tagged_images_upright(tmp_path: Path, drawn: tuple[U8, U8]) -> None:
    row = predict(save(tmp_path / "x.png", to_stored(drawn[0], 6), 6))
    part = str(tmp_path / "part-000000.parquet")
    storage.write_table(part, table([row], PREDICTIONS))
    shown = overlays.draw_case({**row, "part": part, "position": 0}, "", "")
    assert (shown.width > shown.height, shown.note) == (True, "")
    assert shown.outlines


@pytest.mark.parametrize(("directions", "orientation"), [(["R", "F"], 2), (["F", "R"], 6)])
def test_dicom_segmentation_fits_the_stored_pixels(
    tmp_path: Path, drawn: tuple[U8, U8], directions: list[str], orientation: int
) -> None:
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    pixels = to_stored(drawn[0], orientation).astype(np.uint16)
    path = tmp_path / "x.dcm"
    path.write_bytes(write_dicom(pixels, PatientOrientation=directions, **uids))
    row = predict(str(path))
    assert "PatientOrientation (0020,0020) of x.dcm states that the stored picture is" in row["message"]
    settings = ExportSettings(formats=("dicom-seg",), include_doubtful=True)
    (content,) = writers.encode_row(row, "dicom-seg", mask_of(row), settings)
    right, left = pydicom.dcmread(io.BytesIO(content)).pixel_array
    np.testing.assert_array_equal(right | left, mask_of(row))
    assert (int(right.sum()), int(left.sum())) == (row["right_lung_px"], row["left_lung_px"])


def test_reference_keeps_its_tag_after_a_json_round_trip(tmp_path: Path, drawn: tuple[U8, U8]) -> None:
    uri = save(tmp_path / "x.png", to_stored(drawn[0], 8), 8)
    opened = open_item(Item(Record("x", "d", uri)), SMALL)
    assert replace(OpenedImage.from_json(opened.to_json()), square=opened.square) == opened
