"""One pass over data: training on batches, and evaluation of each image once."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lungseg.config import ModelSettings
from lungseg.errors import LungsegError
from lungseg.model.network import build_network
from lungseg.schema import Geometry, Sample
from lungseg.training import epoch_loop
from lungseg.training.evaluation import measure_at_prepared_size
from lungseg.training.loader import Batch

torch.set_num_threads(1)  # on a busy machine two threads are ten times slower

WHOLE = Geometry(64, 64, 64, 64, 0, 0, 64)


def a_sample(image_id: str, seed: int = 0, dataset: str = "north") -> Sample:
    """A dark square on grey noise with its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((64, 64), np.uint8)
    top, left = random.integers(4, 28, 2)
    mask[top : top + 32, left : left + 32] = 1
    image = np.where(mask == 1, 60, 190) + random.integers(-30, 30, mask.shape)
    return Sample(image_id, dataset, image_id, None, image_id, WHOLE, image.astype(np.uint8), mask[None])


def a_batch(*samples: Sample) -> Batch:
    images = torch.from_numpy(np.stack([sample.image for sample in samples])[:, None])
    masks = torch.from_numpy(np.stack([sample.masks for sample in samples if sample.masks is not None]))
    return Batch(images, masks, samples, len(samples))


class Pixelwise(nn.Module):
    """Predicts lung for bright pixels; records whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images * self.scale + self.offset


def train(
    losses: Sequence[Sequence[float]], rates: Sequence[float] | None = None, seeds: Sequence[int] | None = None
) -> tuple[tuple[float, int], list[Any], list[Any]]:
    """Train on batches with these losses; return the result, the batches and the reported losses."""
    seen_batches: list[Any] = []
    shown: list[Any] = []

    def train_on_batch(batch: Batch, rate: float) -> Tensor:
        seen_batches.append((len(batch.samples), rate, float(torch.rand(()))))
        return torch.tensor(losses[len(seen_batches) - 1])

    batches = [a_batch(*[a_sample(str(i)) for i in range(len(some))]) for some in losses]
    result = epoch_loop.train_batches(
        train_on_batch,
        batches,
        [0.1] * len(losses) if rates is None else rates,
        range(len(losses)) if seeds is None else seeds,
        lambda number, loss: shown.append((number, loss)),
    )
    return result, seen_batches, shown


# Training


def test_loss_is_a_sum_with_its_image_count() -> None:
    (total, images), _, shown = train([[1.0, 2.0, 6.0], [0.5]])
    assert (total, images) == (9.5, 4)
    assert shown == [(1, 3.0), (2, 0.5)]


def test_long_sum_of_losses_keeps_precision() -> None:
    (total, images), _, _ = train([[1.0], *[[1e-8]] * 1000])
    assert images == 1001
    assert total == pytest.approx(1.0 + 1e-5, abs=1e-12)  # in float32 the sum would still be 1


def test_every_batch_has_its_rate_and_its_random_state() -> None:
    _, seen_batches, _ = train([[1.0, 1.0], [1.0], [1.0]], [0.1, 0.2, 0.3], [7, 8, 7])
    assert [(size, rate) for size, rate, _ in seen_batches] == [(2, 0.1), (1, 0.2), (1, 0.3)]
    drawn = [chance for _, _, chance in seen_batches]
    assert drawn[0] == drawn[2] != drawn[1]
    torch.manual_seed(8)
    assert drawn[1] == float(torch.rand(()))


@pytest.mark.parametrize("short", ["rates", "seeds"])
def test_batches_rates_and_seeds_need_equal_lengths(short: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        train([[1.0], [1.0]], [0.1] * (1 if short == "rates" else 2), [0] * (1 if short == "seeds" else 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_infinite_loss_ends_training_with_advice(value: float) -> None:
    with pytest.raises(LungsegError, match=r"the loss became (nan|inf): lower --optim\.lr \(now 0\.25\), and check"):
        train([[1.0], [1.0, value], [1.0]], [0.5, 0.25, 0.125])


def test_infinite_loss_of_another_rank_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_loop, "gather", lambda own: [own, (math.nan, 2)])
    with pytest.raises(LungsegError, match=r"the loss became nan: lower --optim\.lr, and check the masks"):
        train([[1.0]])


def test_loss_sum_includes_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_loop, "gather", lambda own: [(10.0, 5), own])
    assert train([[1.0, 2.0]])[0] == (13.0, 7)


# Measuring


def test_evaluation_evaluates_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build_network(ModelSettings(encoder="tu-test_efficientnet", weights="none")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = a_batch(*[a_sample(str(seed), seed) for seed in range(3)])
    first, second = (epoch_loop.evaluate(model, [batch], measure_at_prepared_size({"lung": 0.5})) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    noting = Pixelwise()
    epoch_loop.evaluate(noting, [batch], measure_at_prepared_size({"lung": 0.5}))
    assert noting.modes == [False]


@pytest.mark.parametrize("threads", [1, 3])
def test_each_image_is_measured_once_and_rows_are_sorted(threads: int) -> None:
    samples = [a_sample(name, seed, dataset=name[0]) for seed, name in enumerate(["s2", "n9", "s1", "n1", "n5"])]
    batches = [a_batch(*samples[:2]), a_batch(*samples[2:])]
    rows = epoch_loop.evaluate(Pixelwise(), batches, measure_at_prepared_size({"lung": 0.5}), threads)
    assert [(row["dataset"], row["image_id"]) for row in rows] == [
        ("n", "n1"),
        ("n", "n5"),
        ("n", "n9"),
        ("s", "s1"),
        ("s", "s2"),
    ]
    assert all(row["tp"] + row["fp"] + row["fn"] + row["tn"] == 64 * 64 for row in rows)


def test_rows_hold_the_metrics_of_their_image() -> None:
    samples = [a_sample(str(seed), seed) for seed in range(3)]
    rows = epoch_loop.evaluate(Pixelwise(), [a_batch(*samples)], measure_at_prepared_size({"lung": 0.5}), 2)
    for sample, row in zip(samples, rows, strict=True):
        assert sample.masks is not None
        lung, predicted = sample.masks[0] == 1, sample.image / 255.0 >= 0.5  # the model predicts 0.5 at logit 0
        assert row["tp"] == (lung & predicted).sum()
        assert row["fn"] == (lung & ~predicted).sum()
        assert row["fp"] == (~lung & predicted).sum()
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert row["pixel_accuracy"] == pytest.approx((row["tp"] + row["tn"]) / 64**2)
        assert row["patient_id"] == sample.patient_id


def test_measure_gets_the_probabilities_of_its_sample() -> None:
    seen: dict[str, NDArray[np.float32]] = {}

    def measure(sample: Sample, probabilities: NDArray[np.float32]) -> list[epoch_loop.Row]:
        (seen[sample.image_id],) = probabilities
        return [{"dataset": "d", "image_id": sample.image_id}]

    samples = [a_sample(str(seed), seed) for seed in range(3)]
    epoch_loop.evaluate(Pixelwise(), [a_batch(*samples)], measure)
    for sample in samples:
        expected = 1 / (1 + np.exp(0.5 - sample.image / 255.0))
        assert seen[sample.image_id].dtype == np.float32
        np.testing.assert_allclose(seen[sample.image_id], expected, atol=1e-6)


def test_pending_predictions_are_limited() -> None:
    """Otherwise a long queue would fill the memory."""
    lock, measured = threading.Lock(), [0]
    ahead: list[int] = []

    def measure(sample: Sample, _: NDArray[np.float32]) -> list[epoch_loop.Row]:
        time.sleep(0.002)
        with lock:
            measured[0] += 1
        return [{"dataset": "d", "image_id": sample.image_id}]

    def batches() -> Iterator[Batch]:
        for number in range(40):
            ahead.append(number - measured[0])
            yield a_batch(a_sample(f"{number:02d}"))

    rows = epoch_loop.evaluate(Pixelwise(), batches(), measure)
    assert [row["image_id"] for row in rows] == [f"{number:02d}" for number in range(40)]
    assert max(ahead) <= 6


def test_measure_errors_are_raised() -> None:
    def measure(sample: Sample, _: NDArray[np.float32]) -> list[epoch_loop.Row]:
        raise LungsegError(f"cannot measure {sample.image_id}")

    with pytest.raises(LungsegError, match="cannot measure a"):
        epoch_loop.evaluate(Pixelwise(), [a_batch(a_sample("a"))], measure)


def test_no_batches_are_no_rows() -> None:
    assert epoch_loop.evaluate(Pixelwise(), [], measure_at_prepared_size({"lung": 0.5})) == []
