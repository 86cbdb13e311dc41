"""X-rays segmented in this process: the rows and masks of the bulk pipeline."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungseg.config import PostprocessSettings
from lungseg.errors import CheckpointError, ImageError
from lungseg.imaging import codecs
from lungseg.inference.items import Item
from lungseg.inference.result import Result
from lungseg.inference.segmenter import Segmenter, SegmenterSettings
from lungseg.ingest import sources
from lungseg.predictions.parts import part_files, read_part
from lungseg.schema import Record
from tests.shared_fixtures import steady


@pytest.fixture(scope="module")
def segmenter(trained: Path) -> Segmenter:
    return Segmenter([str(trained)])


@pytest.fixture(scope="module")
def results(archive: Path, segmenter: Segmenter) -> list[Result]:
    return list(segmenter.segment(Item(record) for record in sources.discover(str(archive))))


def segment_file(segmenter: Segmenter, path: Path) -> Result:
    (result,) = segmenter.segment([Item(Record(path.stem, "", str(path)))])
    return result


def test_rows_equal_those_of_the_bulk_pipeline(results: list[Result], predicted: Path) -> None:
    bulk = [row for part in part_files(str(predicted)) for row in read_part(part).to_pylist()]
    assert len({row["mask"] for row in bulk}) > 1
    for row, expected in zip(steady(result.row for result in results), steady(bulk), strict=True):
        # Sums of a batch of another size differ in the last bits.
        means = {name: pytest.approx(expected[name], abs=1e-5) for name in ("mean_probability", "border_entropy")}
        assert row == {**expected, **means}


def test_result_mask_is_the_mask_of_its_row(results: list[Result]) -> None:
    for result in results:
        assert result.mask.dtype == np.uint8
        assert codecs.encode_rle(result.mask) == result.row["mask"]
        assert ((result.right + result.left) == result.mask).all()
        assert result.right.sum() == result.row["right_lung_px"]


def test_probability_gives_the_mask_at_its_threshold(trained: Path, archive: Path) -> None:
    settings = SegmenterSettings(postprocess=PostprocessSettings(lungs=False, holes=False), threshold=0.3)
    result = segment_file(Segmenter([str(trained)], settings), next((archive / "north" / "images").iterdir()))
    assert result.probability.dtype == np.float32
    assert ((result.probability >= 0.3) == result.mask).all()


def test_mask_has_the_orientation_of_the_stored_pixels(segmenter: Segmenter, archive: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = sorted((archive / "north" / "images").iterdir())[2]
    upright = segment_file(segmenter, path)
    sideways = tmp_path / "sideways.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise for display
    Image.fromarray(np.rot90(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))).save(sideways, exif=exif)
    result = segment_file(segmenter, sideways)
    for name in ("mask", "right", "left", "probability"):
        assert (getattr(result, name) == np.rot90(getattr(upright, name))).all()


def test_rejected_image_has_a_reason_and_no_mask(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    result = segment_file(segmenter, path)
    assert (result.status, result.ok, result.row["codes"]) == ("rejected", False, ["undecodable"])
    assert "notes.png" in result.reason
    with pytest.raises(ImageError, match=r"undecodable: notes\.png"):
        result.mask  # noqa: B018


def test_other_images_of_a_batch_are_segmented(segmenter: Segmenter, archive: Path) -> None:
    records = [record for record in sources.discover(str(archive)) if record.dataset == "south"]
    missing = Record("none", "south", str(archive / "none.png"))
    results = list(segmenter.segment([Item(records[0]), Item(missing), Item(records[1])]))
    assert [result.ok for result in results] == [True, False, True]


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pass the folder of a run"):
        Segmenter([str(tmp_path)])


def test_segmenter_needs_neither_ray_nor_pandas() -> None:
    code = (
        "import sys, lungseg.inference.segmenter, lungseg.inference.ensemble; "
        "print({'ray', 'wandb', 'webdataset', 'pandas', 'scipy', 'torch._dynamo'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
