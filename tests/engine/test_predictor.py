"""A trained model behind one call: prepared squares in, masks at native size out."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.data.preprocess import prepare_image, restore
from lungseg.engine import checkpoint
from lungseg.engine.predictor import Predictor
from lungseg.model.network import LungNetwork, build
from lungseg.schema import SCHEMA, Geometry

torch.set_num_threads(1)  # two threads that wait for each other are ten times slower on a busy machine

U8 = NDArray[np.uint8]
SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
SIZES = [(64, 64), (96, 130), (201, 77), (33, 500), (64, 65)]


@pytest.fixture(scope="module")
def network() -> LungNetwork:
    """Weights and batch statistics that make something of every picture."""
    torch.manual_seed(2)
    model = build(SMALL).train()
    for seed in range(5):
        model(torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(seed)))
    with torch.no_grad():
        model.net.segmentation_head[0].weight.mul_(200.0)
    return model.eval()


@pytest.fixture(scope="module")
def saved(network: LungNetwork, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    folder = str(tmp_path_factory.mktemp("run") / "checkpoint")
    content = {
        "epoch": 1,
        "preprocess": PreprocessSettings(size=64).model_dump(),
        "settings": {"model": SMALL.model_dump()},
    }
    nobody = pa.table({"sha256": pa.array([], pa.string())}).replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    checkpoint.save(folder, checkpoint.Snapshot(dict(network.state_dict()), {}, content, nobody))
    return checkpoint.find(folder + "/epoch-0001")


@pytest.fixture(scope="module")
def prepared_pictures() -> tuple[list[U8], list[Geometry]]:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, size).astype(np.uint8) for size in SIZES]
    settings = [PreprocessSettings(size=64, geometry=way) for way in ("pad", "crop")]
    pairs = [prepare_image(picture, way) for picture in pictures for way in settings]
    return [square for square, _ in pairs], [geometry for _, geometry in pairs]


Prepared = tuple[list[U8], list[Geometry]]


def test_masks_come_back_at_native_size(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    masks = Predictor(saved)(*prepared_pictures)
    assert [mask.shape for mask in masks] == [size for size in SIZES for _ in range(2)]
    assert all(mask.dtype == np.uint8 for mask in masks)
    assert set(np.unique(np.concatenate([mask.ravel() for mask in masks]))) == {0, 1}


def test_probabilities_are_those_of_the_network_that_was_saved(
    network: LungNetwork, saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    squares, _ = prepared_pictures
    found = Predictor(saved).probabilities(squares)
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(np.stack(squares)[:, None] / np.float32(255.0))))[:, 0]
    assert found.dtype == np.float32
    assert found.shape == (len(squares), 64, 64)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert found.std() > 0.05


def test_a_batch_of_one_is_a_batch_of_many(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    squares, _ = prepared_pictures
    predictor = Predictor(saved)
    together = predictor.probabilities(squares)
    alone = np.concatenate([predictor.probabilities([square]) for square in squares])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    backwards = predictor.probabilities(squares[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)


def test_the_same_pictures_have_the_same_masks_every_time(
    saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    predictor = Predictor(saved)
    first, second = predictor(*prepared_pictures), predictor(*prepared_pictures)
    other = Predictor(saved)(*prepared_pictures)
    assert all(
        (one == two).all() and (one == three).all() for one, two, three in zip(first, second, other, strict=True)
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_a_mask_is_where_the_restored_probability_reaches_the_threshold(
    threshold: float, saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    squares, geometries = prepared_pictures
    predictor = Predictor(saved, threshold=threshold)
    probabilities = predictor.probabilities(squares)
    for mask, square, geometry in zip(predictor(squares, geometries), probabilities, geometries, strict=True):
        assert (mask == (restore(square, geometry) >= threshold)).all()


def test_a_higher_threshold_marks_less(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    low, high = (Predictor(saved, threshold=t)(*prepared_pictures) for t in (0.3, 0.7))
    assert all((less <= more).all() for less, more in zip(high, low, strict=True))
    assert sum(map(np.sum, high)) < sum(map(np.sum, low))


def test_squares_and_geometries_must_be_as_many(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    squares, geometries = prepared_pictures
    with pytest.raises(ValueError, match="zip"):
        Predictor(saved)(squares, geometries[:-1])


def test_prediction_leaves_the_squares_alone(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    squares, geometries = prepared_pictures
    before = [square.copy() for square in squares]
    Predictor(saved)(squares, geometries)
    assert all((one == other).all() for one, other in zip(before, squares, strict=True))
