"""X-rays segmented in this process: the rows and masks of the bulk pipeline."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from lungseg.config import PostprocessSettings
from lungseg.errors import CheckpointError, ImageError, InputError, SettingsError
from lungseg.imaging import codecs
from lungseg.imaging.run_lengths import Runs
from lungseg.inference.image_inputs import ImageInput
from lungseg.inference.items import Item
from lungseg.inference.postprocess import clean
from lungseg.inference.result import Result
from lungseg.inference.segmenter import Segmenter, SegmenterSettings, load
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
        names = ("mean_probability", "border_entropy", "doubt")
        assert row == {**expected, **{name: pytest.approx(expected[name], abs=1e-5) for name in names}}


def test_result_mask_is_the_mask_of_its_row(results: list[Result]) -> None:
    for result in results:
        assert result.mask.dtype == np.uint8
        assert codecs.encode_rle(result.mask) == result.row["mask"]
        assert ((result.right + result.left) == result.mask).all()
        assert result.right.sum() == result.row["right_lung_px"]


def test_probability_gives_the_mask_at_its_threshold(trained: Path, archive: Path) -> None:
    segmenter = Segmenter([str(trained)], SegmenterSettings(threshold=0.3))
    result = segment_file(segmenter, next((archive / "north" / "images").iterdir()))
    assert result.probability.dtype == np.float32
    raw = (result.probability >= 0.3).astype(np.uint8)
    assert (clean(Runs.from_mask(raw), PostprocessSettings()).to_mask() == result.mask).all()


def test_mask_has_the_orientation_of_the_stored_pixels(segmenter: Segmenter, archive: Path, tmp_path: Path) -> None:
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
    with pytest.raises(ImageError, match=r"^notes\.png"):
        result.mask  # noqa: B018


def test_other_images_of_a_batch_are_segmented(segmenter: Segmenter, archive: Path) -> None:
    records = [record for record in sources.discover(str(archive)) if record.dataset == "south"]
    missing = Record("none", "south", str(archive / "none.png"))
    results = list(segmenter.segment([Item(records[0]), Item(missing), Item(records[1])]))
    assert [result.ok for result in results] == [True, False, True]


def test_arrays_and_bytes_give_the_masks_of_their_file(segmenter: Segmenter, archive: Path) -> None:
    path = sorted((archive / "north" / "images").iterdir())[0]
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    images: list[ImageInput] = [path.read_bytes(), pixels, Image.fromarray(pixels)]
    expected = segmenter(path)
    for result in (*segmenter(images), segmenter(255 - pixels, polarity="bone-black")):
        assert (result.mask == expected.mask).all()
        assert result.doubt == pytest.approx(expected.doubt, abs=1e-5)


def test_single_rejected_image_raises(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        segmenter(tmp_path / "none.png")
    with pytest.raises(InputError, match="almost only the grey value 0"):
        segmenter(np.zeros((64, 64), np.uint8))


def test_rejected_images_of_a_list_keep_their_position(segmenter: Segmenter, archive: Path) -> None:
    path = str(sorted((archive / "north" / "images").iterdir())[1])
    results = segmenter([path, b"no picture", np.zeros((2, 2, 2)), path])
    assert [result.codes for result in results] == [(), ("undecodable",), ("depth",), ()]
    assert [result.row["image_id"] for result in results[1:3]] == ["image-2", "image-3"]
    assert (results[0].mask == results[3].mask).all()
    assert results[0].max_doubt == pytest.approx(1.5 * results[3].doubt)  # the highest usual one of this list
    assert segmenter(path).max_doubt is None
    assert segmenter([]) == []


def test_threads_share_a_segmenter(segmenter: Segmenter, archive: Path, results: list[Result]) -> None:
    paths = [record.image_uri for record in sources.discover(str(archive))] * 2
    with ThreadPoolExecutor(4) as pool:
        for result, expected in zip(pool.map(segmenter, paths), results * 2, strict=True):
            assert result.row["mask"] == expected.row["mask"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tta": "turn"}, "tta: Input should be 'none' or 'flip'"),
        ({"threshold": 1.0}, "threshold: Input should be less than 1"),
        ({"batch_size": 0}, "batch_size: Input should be greater"),
        ({"device": "gpu"}, "device gpu: torch cannot use it"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str, trained: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        load(str(trained), **options)


def test_models_are_averaged(study: Path, archive: Path) -> None:
    path = sorted((archive / "north" / "images").iterdir())[0]
    probabilities = [load(str(run))(path).probability for run in sorted(study.glob("pooled*"))]
    mean = load(*sorted(study.glob("pooled*")))
    assert mean(path).row["models"] == 1  # the other model was trained on this image
    other = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    assert mean(other).row["models"] == 2
    assert any(np.allclose(mean(path).probability, single, atol=1e-4) for single in probabilities)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Segmenter([str(tmp_path)])


def test_segmenter_needs_neither_ray_nor_pandas() -> None:
    code = (
        "import sys, lungseg.inference.segmenter, lungseg.inference.ensemble; "
        "print({'ray', 'wandb', 'webdataset', 'pandas', 'scipy', 'torch._dynamo'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
