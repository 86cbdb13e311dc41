"""Prediction of prepared squares by one model and by ensembles."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.ensemble import Ensemble, Predictor
from lungseg.inference.items import PredictOptions
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest
from lungseg.model.checkpoint_io import Snapshot, save
from lungseg.model.network import LungNetwork, build_network
from lungseg.schema import SCHEMA

torch.set_num_threads(1)  # on a busy machine, two threads that wait for each other are ten times slower

U8 = NDArray[np.uint8]
SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
SIZES = [(64, 64), (96, 130), (201, 77), (33, 500), (64, 65)]


def network_of(seed: int) -> LungNetwork:
    """Create weights and batch statistics that give varied predictions."""
    torch.manual_seed(seed)
    model = build_network(SMALL).train()
    for other in range(5):
        model(torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(other)))
    with torch.no_grad():
        model.net.segmentation_head[0].weight.mul_(200.0)
    return model.eval()


def save_run(network: LungNetwork, run: Path, *trained: str) -> checkpoint.Checkpoint:
    """Save a checkpoint that lists the images it was trained on."""
    content = {
        "epoch": 1,
        "preprocess": PreprocessSettings(size=64).model_dump(),
        "settings": {"model": SMALL.model_dump()},
    }
    records = pa.table({"pixel_digest": pa.array(trained, pa.string())})
    records = records.replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    save(str(run / "checkpoint"), Snapshot(dict(network.state_dict()), {}, content, storage.table_bytes(records)))
    return checkpoint.find_all(str(run))[0]


@pytest.fixture(scope="module")
def network() -> LungNetwork:
    return network_of(2)


@pytest.fixture(scope="module")
def saved(network: LungNetwork, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    return save_run(network, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def models(network: LungNetwork, tmp_path_factory: pytest.TempPathFactory) -> list[checkpoint.Checkpoint]:
    """Three models. All were trained on image `all`; the others show which models were trained on other images."""
    trained = [("all", "one"), ("all", "two", "mine"), ("all", "mine")]
    networks = [network, network_of(3), network_of(4)]
    folders = [tmp_path_factory.mktemp("run") for _ in trained]
    return [
        save_run(network, folder, *names) for network, folder, names in zip(networks, folders, trained, strict=True)
    ]


@pytest.fixture(scope="module")
def squares() -> list[U8]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, size).astype(np.uint8) for size in SIZES]
    settings = [PreprocessSettings(size=64, geometry=geometry) for geometry in ("pad", "crop")]
    return [prepare_image(image, preprocess)[0] for image in images for preprocess in settings]


def test_probabilities_are_those_of_the_saved_network(
    network: LungNetwork, saved: checkpoint.Checkpoint, squares: list[U8]
) -> None:
    result = Predictor(saved).probabilities(squares)
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(np.stack(squares)[:, None] / np.float32(255.0))))
    assert result.dtype == np.float32
    assert result.shape == (len(squares), 1, 64, 64)
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-5)
    assert result.std() > 0.05


def test_batch_size_and_order_do_not_matter(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    predictor = Predictor(saved)
    together = predictor.probabilities(squares)
    alone = np.concatenate([predictor.probabilities([square]) for square in squares])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    backwards = predictor.probabilities(squares[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)


def test_repeated_prediction_gives_equal_bits(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    predictor, before = Predictor(saved), [square.copy() for square in squares]
    first = predictor.probabilities(squares)
    assert (predictor.probabilities(squares) == first).all()
    assert (Predictor(saved).probabilities(squares) == first).all()
    assert all((square == copy).all() for square, copy in zip(squares, before, strict=True))


def test_defaults_are_fp32_without_tta(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    result = Predictor(saved).probabilities(squares)
    for options in (PredictOptions(), PredictOptions(precision="fp32"), PredictOptions("cpu", "auto", "none")):
        assert (Predictor(saved, options).probabilities(squares) == result).all()


def test_bf16_differs_slightly_from_fp32(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    full, half = (Predictor(saved, PredictOptions(precision=way)).probabilities(squares) for way in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert (half != full).any()
    assert np.abs(half - full).mean() < 0.05


def mirrored(squares: list[U8]) -> list[U8]:
    return [np.ascontiguousarray(square[:, ::-1]) for square in squares]


def test_flip_is_the_mean_with_the_mirrored_image(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    plain = Predictor(saved)
    plain_mean, mirrored_back = plain.probabilities(squares), plain.probabilities(mirrored(squares))[..., ::-1]
    assert np.abs(plain_mean - mirrored_back).max() > 0.05
    result = Predictor(saved, PredictOptions(tta="flip")).probabilities(squares)
    np.testing.assert_allclose(result, (plain_mean + mirrored_back) / 2, atol=1e-5)


def test_flip_makes_prediction_mirror_symmetric(saved: checkpoint.Checkpoint, squares: list[U8]) -> None:
    predictor = Predictor(saved, PredictOptions(tta="flip"))
    result = predictor.probabilities(mirrored(squares))
    np.testing.assert_allclose(result[..., ::-1], predictor.probabilities(squares), atol=1e-5)


def mean_of(
    models: list[checkpoint.Checkpoint], squares: list[U8], options: PredictOptions | None = None
) -> NDArray[np.float32]:
    probabilities = [Predictor(model, options).probabilities(squares) for model in models]
    return np.mean(probabilities, axis=0, dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize("options", [PredictOptions(), PredictOptions(tta="flip")], ids=["plain", "flip"])
def test_ensemble_is_the_mean_of_its_members(
    options: PredictOptions, models: list[checkpoint.Checkpoint], squares: list[U8]
) -> None:
    result = Ensemble(models, options)(squares, [f"new {i}" for i in range(len(squares))])
    assert [(prediction.models, prediction.seen_in_training) for prediction in result] == [(3, False)] * len(squares)
    means = np.stack([prediction.probability for prediction in result])
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, mean_of(models, squares, options), atol=1e-5)


def test_ensemble_of_one_equals_the_model(models: list[checkpoint.Checkpoint], squares: list[U8]) -> None:
    result = Ensemble(models[:1])(squares, ["one"] * len(squares))
    assert all((prediction.models, prediction.seen_in_training) == (1, True) for prediction in result)
    assert (
        np.stack([prediction.probability for prediction in result]) == Predictor(models[0]).probabilities(squares)
    ).all()


@pytest.mark.parametrize(
    ("digest", "member_numbers"),
    [("new", [0, 1, 2]), ("one", [1, 2]), ("two", [0, 2]), ("mine", [0]), ("", [0, 1, 2])],
)
def test_members_trained_on_an_image_are_left_out(
    digest: str, member_numbers: list[int], models: list[checkpoint.Checkpoint], squares: list[U8]
) -> None:
    square = squares[0]
    (result,) = Ensemble(models)([square], [digest])
    assert (result.models, result.seen_in_training) == (len(member_numbers), False)
    np.testing.assert_allclose(result.probability, mean_of([models[i] for i in member_numbers], [square])[0], atol=1e-5)


def test_all_members_predict_an_image_that_all_were_trained_on(
    models: list[checkpoint.Checkpoint], squares: list[U8]
) -> None:
    square = squares[0]
    (result,) = Ensemble(models)([square], ["all"])
    assert (result.models, result.seen_in_training) == (3, True)
    np.testing.assert_allclose(result.probability, mean_of(models, [square])[0], atol=1e-5)


def test_each_image_of_a_batch_has_its_own_members(models: list[checkpoint.Checkpoint], squares: list[U8]) -> None:
    squares, digests = squares[:5], ["mine", "new", "all", "one", "two"]
    ensemble = Ensemble(models)
    together = ensemble(squares, digests)
    assert [(prediction.models, prediction.seen_in_training) for prediction in together] == [
        (1, False),
        (3, False),
        (3, True),
        (2, False),
        (2, False),
    ]
    for prediction, square, digest in zip(together, squares, digests, strict=True):
        (alone,) = ensemble([square], [digest])
        np.testing.assert_allclose(prediction.probability, alone.probability, atol=1e-5)


def test_member_is_skipped_when_trained_on_the_whole_batch(
    models: list[checkpoint.Checkpoint], squares: list[U8]
) -> None:
    squares = squares[:2]
    result = Ensemble(models[:2])(squares, ["one", "one"])
    expected = Predictor(models[1]).probabilities(squares)
    assert (np.stack([prediction.probability for prediction in result]) == expected).all()


def test_order_of_members_does_not_matter(models: list[checkpoint.Checkpoint], squares: list[U8]) -> None:
    squares, digests = squares[:3], ["new", "one", "all"]
    first, second = Ensemble(models)(squares, digests), Ensemble(models[::-1])(squares, digests)
    for prediction, other in zip(first, second, strict=True):
        np.testing.assert_allclose(prediction.probability, other.probability, atol=1e-6)
        assert (prediction.models, prediction.seen_in_training) == (other.models, other.seen_in_training)


def test_digest_of_one_model_is_that_of_its_weights(models: list[checkpoint.Checkpoint]) -> None:
    assert [ensemble_digest([model]) for model in models] == [model.digest for model in models]


def test_ensemble_digest_does_not_depend_on_order(models: list[checkpoint.Checkpoint]) -> None:
    result = {ensemble_digest(order) for order in permutations(models)}
    assert result == {storage.digest(sorted(model.digest for model in models))}


def test_different_ensembles_have_different_digests(models: list[checkpoint.Checkpoint]) -> None:
    first, second, third = models
    some = [[first], [second], [third], [first, second], [first, third], [second, third], models]
    assert len({ensemble_digest(members) for members in some}) == len(some)
