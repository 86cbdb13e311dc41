"""Reference masks of several classes are read again, from image files and from prepared samples."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config import PreprocessSettings
from lungseg.predictions.image_files import read_image_and_masks
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import Record
from tests.export.class_predictions import class_row, draw_masks


def _row(uri: str, masks: dict[str, U8], **changes: object) -> Row:
    row = class_row("one", uri, masks, dataset="north", **changes)
    return {**row, "classes": [{**entry, "dice": 0.5} for entry in row["classes"]]}


@pytest.fixture
def files(tmp_path: Path, draw_pair: object) -> dict[str, str]:
    """Paths of an image and of its masks by class."""
    random = np.random.default_rng(0)
    paths = {"image": str(tmp_path / "one.png")}
    picture = cv2.GaussianBlur(random.integers(0, 255, (96, 80)).astype(np.uint8), (0, 0), 2)
    cv2.imwrite(paths["image"], cv2.normalize(picture, picture, 0, 255, cv2.NORM_MINMAX))
    for name, mask in draw_masks().items():
        paths[name] = str(tmp_path / f"{name}.png")
        cv2.imwrite(paths[name], mask * np.uint8(255))
    return paths


def test_masks_of_files_are_read_by_class(files: dict[str, str]) -> None:
    drawn = draw_masks()
    uris = [files[name] for name in drawn]
    row = _row(files["image"], drawn, mask_uris=uris, mask_classes=list(drawn))
    image, references, note = read_image_and_masks(row)
    assert (image.shape, list(references), note) == ((96, 80), list(drawn), "")
    for name, mask in drawn.items():
        np.testing.assert_array_equal(references[name], mask)
    not_compared = {**row, "classes": [{**entry, "dice": None} for entry in row["classes"]]}
    assert read_image_and_masks(not_compared)[1:] == ({}, "")


def test_prepared_samples_have_the_masks_of_their_classes(files: dict[str, str], tmp_path: Path) -> None:
    drawn = draw_masks()
    record = Record("one", "north", files["image"], tuple(files[name] for name in drawn), tuple(drawn))
    settings = PreprocessSettings(size=96, histogram="none", classes=tuple(drawn))
    dataset_writer.write_datasets(plan_shards([record], str(tmp_path / "data"), settings, images_per_shard=2))
    (tar,) = (tmp_path / "data" / "north").glob("*.tar")
    wanted = {name: drawn[name] for name in ("heart", "left_lung", "right_lung")}  # another order, one class less
    _, references, note = read_image_and_masks(_row(f"{tar}#one", wanted))
    assert (list(references), note) == (list(wanted), "grey values as prepared")
    for name, mask in wanted.items():
        assert np.mean(references[name] != mask) < 0.01
    _, references, _ = read_image_and_masks({"source_uri": f"{tar}#one", "classes": None})  # by a model of the lungs
    assert list(references) == ["lung"]
    assert np.mean(references["lung"] != (drawn["right_lung"] | drawn["left_lung"])) < 0.01


def test_a_class_whose_mask_is_lost_leaves_the_others(files: dict[str, str]) -> None:
    drawn = draw_masks()
    uris = [files[name] for name in drawn]
    Path(files["heart"]).unlink()
    row = _row(files["image"], drawn, mask_uris=uris, mask_classes=list(drawn))
    _, references, _ = read_image_and_masks(row)
    assert list(references) == [name for name in drawn if name != "heart"]


def test_prepared_lungs_are_divided_for_a_model_of_each_lung(prepared: Path) -> None:
    path = prepared / "north" / "index.parquet"
    sample = next(row for row in storage.read_table(str(path)).to_pylist() if row["image_id"] == "north_02")
    uri = f"{prepared}/north/{sample['shard']}.tar#north_02"
    image, lungs, _ = read_image_and_masks({"source_uri": uri, "classes": None})
    masks = {name: np.zeros(image.shape, np.uint8) for name in ("right_lung", "left_lung", "heart")}
    _, references, _ = read_image_and_masks(_row(uri, masks))
    assert list(references) == ["right_lung", "left_lung"]  # no heart is annotated
    np.testing.assert_array_equal(references["right_lung"] | references["left_lung"], lungs["lung"])
    assert np.nonzero(references["right_lung"])[1].mean() < np.nonzero(references["left_lung"])[1].mean()
