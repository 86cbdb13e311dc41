"""Trained models behind one call: prepared squares in, masks at native size or mean probabilities out."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.imaging.geometry import prepare_image, restore
from lungseg.inference.ensemble import Ensemble, Predictor
from lungseg.inference.items import PredictOptions
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest
from lungseg.model.checkpoint_io import Snapshot, save
from lungseg.model.network import LungNetwork, build_network
from lungseg.schema import SCHEMA, Geometry

torch.set_num_threads(1)  # two threads that wait for each other are ten times slower on a busy machine

U8 = NDArray[np.uint8]
SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
SIZES = [(64, 64), (96, 130), (201, 77), (33, 500), (64, 65)]


def network_of(seed: int) -> LungNetwork:
    """Make weights and batch statistics that make something of every picture."""
    torch.manual_seed(seed)
    model = build_network(SMALL).train()
    for other in range(5):
        model(torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(other)))
    with torch.no_grad():
        model.net.segmentation_head[0].weight.mul_(200.0)
    return model.eval()


def save_run(network: LungNetwork, run: Path, *learnt: str) -> checkpoint.Checkpoint:
    """Save a run's checkpoint that says which pictures it was trained on."""
    content = {
        "epoch": 1,
        "preprocess": PreprocessSettings(size=64).model_dump(),
        "settings": {"model": SMALL.model_dump()},
    }
    pictures = pa.table({"pixel_digest": pa.array(learnt, pa.string())})
    pictures = pictures.replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    save(str(run / "checkpoint"), Snapshot(dict(network.state_dict()), {}, content, pictures))
    return checkpoint.find_all(str(run))[0]


@pytest.fixture(scope="module")
def network() -> LungNetwork:
    return network_of(2)


@pytest.fixture(scope="module")
def saved(network: LungNetwork, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    return save_run(network, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def models(network: LungNetwork, tmp_path_factory: pytest.TempPathFactory) -> list[checkpoint.Checkpoint]:
    """Three models; `all` is a picture that each was trained on, `one` and `two` such that only the first two were."""
    learnt = [("all", "one"), ("all", "two", "mine"), ("all", "mine")]
    networks = [network, network_of(3), network_of(4)]
    folders = [tmp_path_factory.mktemp("run") for _ in learnt]
    return [save_run(one, folder, *known) for one, folder, known in zip(networks, folders, learnt, strict=True)]


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


def test_a_predictor_that_is_told_nothing_computes_in_full_precision_and_once(
    saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    squares, _ = prepared_pictures
    found = Predictor(saved).probabilities(squares)
    for how in (PredictOptions(), PredictOptions(precision="fp32"), PredictOptions("cpu", "auto", "none")):
        assert (Predictor(saved, how).probabilities(squares) == found).all()


def test_half_precision_is_near_full_precision_and_not_the_same(
    saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    squares, _ = prepared_pictures
    full, half = (Predictor(saved, PredictOptions(precision=way)).probabilities(squares) for way in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert (half != full).any()
    assert np.abs(half - full).mean() < 0.05


def mirrored(squares: list[U8]) -> list[U8]:
    return [np.ascontiguousarray(square[:, ::-1]) for square in squares]


def test_flip_is_the_mean_with_the_mirrored_picture(saved: checkpoint.Checkpoint, prepared_pictures: Prepared) -> None:
    squares, _ = prepared_pictures
    plain = Predictor(saved)
    there, back = plain.probabilities(squares), plain.probabilities(mirrored(squares))[..., ::-1]
    assert np.abs(there - back).max() > 0.05
    found = Predictor(saved, PredictOptions(tta="flip")).probabilities(squares)
    np.testing.assert_allclose(found, (there + back) / 2, atol=1e-5)


def test_with_flip_a_mirrored_picture_has_the_mirrored_prediction(
    saved: checkpoint.Checkpoint, prepared_pictures: Prepared
) -> None:
    squares, _ = prepared_pictures
    predictor = Predictor(saved, PredictOptions(tta="flip"))
    found = predictor.probabilities(mirrored(squares))
    np.testing.assert_allclose(found[..., ::-1], predictor.probabilities(squares), atol=1e-5)


def mean_of(
    models: list[checkpoint.Checkpoint], squares: list[U8], how: PredictOptions | None = None
) -> NDArray[np.float32]:
    every = [Predictor(one, how).probabilities(squares) for one in models]
    return np.mean(every, axis=0, dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize("how", [PredictOptions(), PredictOptions(tta="flip")], ids=["plain", "flip"])
def test_an_ensemble_is_the_mean_of_its_members(
    how: PredictOptions, models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    squares, _ = prepared_pictures
    found = Ensemble(models, how)(squares, [f"new {i}" for i in range(len(squares))])
    assert [(one.models, one.seen_in_training) for one in found] == [(3, False)] * len(squares)
    means = np.stack([one.probability for one in found])
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, mean_of(models, squares, how), atol=1e-5)


def test_an_ensemble_of_one_is_that_one(models: list[checkpoint.Checkpoint], prepared_pictures: Prepared) -> None:
    squares, _ = prepared_pictures
    found = Ensemble(models[:1])(squares, ["one"] * len(squares))
    assert all((one.models, one.seen_in_training) == (1, True) for one in found)
    assert (np.stack([one.probability for one in found]) == Predictor(models[0]).probabilities(squares)).all()


@pytest.mark.parametrize(
    ("digest", "counting"),
    [("new", [0, 1, 2]), ("one", [1, 2]), ("two", [0, 2]), ("mine", [0]), ("", [0, 1, 2])],
)
def test_a_member_that_was_trained_on_a_picture_is_left_out_for_it(
    digest: str, counting: list[int], models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    square = prepared_pictures[0][0]
    (found,) = Ensemble(models)([square], [digest])
    assert (found.models, found.seen_in_training) == (len(counting), False)
    np.testing.assert_allclose(found.probability, mean_of([models[i] for i in counting], [square])[0], atol=1e-5)


def test_where_all_members_were_trained_on_a_picture_it_is_seen_and_all_count(
    models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    square = prepared_pictures[0][0]
    (found,) = Ensemble(models)([square], ["all"])
    assert (found.models, found.seen_in_training) == (3, True)
    np.testing.assert_allclose(found.probability, mean_of(models, [square])[0], atol=1e-5)


def test_in_one_batch_each_picture_has_its_own_members(
    models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    squares, digests = prepared_pictures[0][:5], ["mine", "new", "all", "one", "two"]
    ensemble = Ensemble(models)
    together = ensemble(squares, digests)
    assert [(one.models, one.seen_in_training) for one in together] == [
        (1, False),
        (3, False),
        (3, True),
        (2, False),
        (2, False),
    ]
    for one, square, digest in zip(together, squares, digests, strict=True):
        (alone,) = ensemble([square], [digest])
        np.testing.assert_allclose(one.probability, alone.probability, atol=1e-5)


def test_a_member_that_no_picture_of_a_batch_may_ask_has_no_part_in_it(
    models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    squares = prepared_pictures[0][:2]
    found = Ensemble(models[:2])(squares, ["one", "one"])
    expected = Predictor(models[1]).probabilities(squares)
    assert (np.stack([one.probability for one in found]) == expected).all()


def test_the_order_of_the_members_does_not_matter(
    models: list[checkpoint.Checkpoint], prepared_pictures: Prepared
) -> None:
    squares, digests = prepared_pictures[0][:3], ["new", "one", "all"]
    first, second = Ensemble(models)(squares, digests), Ensemble(models[::-1])(squares, digests)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-6)
        assert (one.models, one.seen_in_training) == (other.models, other.seen_in_training)


def test_one_models_digest_is_that_of_its_weights(models: list[checkpoint.Checkpoint]) -> None:
    assert [ensemble_digest([one]) for one in models] == [one.digest for one in models]


def test_the_digest_of_several_models_is_one_whatever_their_order(models: list[checkpoint.Checkpoint]) -> None:
    found = {ensemble_digest(order) for order in permutations(models)}
    assert found == {storage.digest(sorted(one.digest for one in models))}


def test_other_models_have_another_digest(models: list[checkpoint.Checkpoint]) -> None:
    first, second, third = models
    some = [[first], [second], [third], [first, second], [first, third], [second, third], models]
    assert len({ensemble_digest(one) for one in some}) == len(some)
