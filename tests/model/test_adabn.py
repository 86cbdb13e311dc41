"""AdaBN: running statistics follow the new images, and the weights stay."""

import copy
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from lungseg.arrays import U8
from lungseg.config import ModelSettings
from lungseg.errors import CheckpointError
from lungseg.model.adabn import adapt_batch_norm
from lungseg.model.network import LungNetwork, build_network

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def squares() -> list[U8]:
    random = np.random.default_rng(1)
    return [random.integers(40, 90 + 8 * number, (64, 64)).astype(np.uint8) for number in range(12)]


@pytest.fixture(scope="module")
def network() -> LungNetwork:
    torch.manual_seed(3)
    return build_network(ModelSettings(encoder="tu-test_efficientnet", weights="none"))


@pytest.fixture
def model(network: LungNetwork) -> LungNetwork:
    """A copy of the network that a test may change."""
    return copy.deepcopy(network)


def test_running_statistics_become_the_mean_over_batches(squares: list[U8]) -> None:
    layer = nn.BatchNorm2d(1)
    layer.running_mean.fill_(7.0)  # type: ignore[union-attr]
    assert list(adapt_batch_norm(nn.Sequential(layer), iter([squares[:6], squares[6:]]))) == [6, 12]
    batches = [np.stack(half) / 255.0 for half in (squares[:6], squares[6:])]
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert float(layer.running_mean) == pytest.approx(np.mean([batch.mean() for batch in batches]), rel=1e-5)
    assert float(layer.running_var) == pytest.approx(np.mean([batch.var(ddof=1) for batch in batches]), rel=1e-5)
    assert layer.momentum == 0.1
    assert not layer.training


def test_only_running_statistics_change_and_dropout_stays_off(model: LungNetwork, squares: list[U8]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def adapted() -> dict[str, torch.Tensor]:
        model.load_state_dict(before)
        for _ in adapt_batch_norm(model, iter([squares[:4], squares[4:8]])):
            pass
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    once, again = adapted(), adapted()
    changed = {name for name in before if not torch.equal(before[name], once[name])}
    assert changed == {name for name in before if name.rsplit(".")[-1].startswith(("running_", "num_batches"))}
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not any(layer.training for layer in model.modules())


def test_adaptation_brings_predictions_closer_to_those_on_own_images(model: LungNetwork, squares: list[U8]) -> None:
    darker = [(square // 3 + 20).astype(np.uint8) for square in squares]

    def fit(images: list[U8]) -> None:
        for _ in adapt_batch_norm(model, iter([images])):
            pass

    def predict(images: list[U8]) -> torch.Tensor:
        with torch.inference_mode():
            return cast(torch.Tensor, model(torch.from_numpy(np.stack(images)[:, None]).float() / 255))

    fit(squares)
    own, unfitted = predict(squares), predict(darker)
    fit(darker)
    assert float((predict(darker) - own).abs().mean()) < 0.6 * float((unfitted - own).abs().mean())


def test_a_network_without_batch_normalisation_is_refused(squares: list[U8]) -> None:
    with pytest.raises(CheckpointError, match="no batch normalisation"):
        next(adapt_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 3)), iter([squares[:2]])))
