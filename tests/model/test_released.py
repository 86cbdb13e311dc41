"""The model `lungs` that comes with the package: its files, its terms, and its masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file

import lungseg
from lungseg.inference.result import Result
from lungseg.metrics.segmentation import count_pixels, dice
from lungseg.model import sources
from lungseg.model.model_card import read_card

FOLDER = sources.RELEASED / "lungs"
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def radiograph() -> Result:
    """A real MONOCHROME1 chest X-ray of 1955 x 1841 px that was not trained on."""
    result = lungseg.load()(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
    assert isinstance(result, Result)
    return result


def test_model_is_small_and_states_its_terms() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES
    assert "CC BY-NC-SA 4.0" in read_card(str(FOLDER)).terms
    assert "NonCommercial" in (FOLDER / "LICENSE").read_text()


def test_an_unknown_xray_has_two_lungs_of_usual_size(radiograph: Result) -> None:
    assert radiograph.status in ("ok", "repaired")
    assert not [flag for flag in radiograph.flags if flag.startswith("lungs_")]
    for lung in (radiograph.right, radiograph.left):
        assert 0.08 < lung.mean() < 0.3
        assert cv2.connectedComponents(lung)[0] == 2
    assert radiograph.doubt is not None
    assert radiograph.doubt < 0.08


def read_reference(image: Path) -> NDArray[np.uint8]:
    (path,) = (image.parents[1] / "masks").glob(f"{image.stem}*")
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    return (np.asarray(mask) > 127).astype(np.uint8)


@pytest.mark.parametrize("hospital", ["montgomery", "shenzhen"])
def test_masks_of_training_images_agree_with_their_references(hospital: str, cxr256: Path) -> None:
    images = sorted((cxr256 / hospital / "images").glob("*.png"))[::40][:4]
    results = lungseg.load()([str(path) for path in images])
    pairs = zip(results, images, strict=True)
    values = [dice(count_pixels(result.mask, read_reference(path))) for result, path in pairs]
    assert np.median(values) > 0.95, values
    assert min(values) > 0.85, "some references of Shenzhen include the area behind the heart"
