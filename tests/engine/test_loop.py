"""One pass over data: the learning rate of a step, training on batches, and figures image by image."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lungseg.config import LossSettings, ModelSettings, OptimSettings
from lungseg.data.loader import Batch
from lungseg.engine import loop
from lungseg.errors import LungsegError
from lungseg.model.losses import bce_dice
from lungseg.model.network import build
from lungseg.schema import Geometry, Sample

torch.set_num_threads(1)  # two threads that wait for each other are ten times slower on a busy machine

BOTH = LossSettings()
ONE_CYCLE = OptimSettings(lr=1e-2, schedule="one-cycle")
WHOLE = Geometry(64, 64, 64, 64, 0, 0, 64)
unhurried = settings(deadline=None)


def a_sample(image_id: str, seed: int = 0, geometry: Geometry = WHOLE, dataset: str = "north") -> Sample:
    """A dark square on grey noise, and where it is."""
    random = np.random.default_rng(seed)
    mask = np.zeros((64, 64), np.uint8)
    top, left = random.integers(4, 28, 2)
    mask[top : top + 32, left : left + 32] = 1
    image = np.where(mask == 1, 60, 190) + random.integers(-30, 30, mask.shape)
    return Sample(image_id, dataset, image_id, None, image_id, geometry, image.astype(np.uint8), mask)


def a_batch(*samples: Sample, global_size: int = 0) -> Batch:
    images = torch.from_numpy(np.stack([sample.image for sample in samples])[:, None]).float() / 255.0
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples if sample.mask is not None])[:, None]).float()
    return Batch(images, masks, samples, global_size or len(samples))


class Pixelwise(nn.Module):
    """One weight and one bias for all pixels; notes in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-0.5))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images * self.scale + self.offset


def train(model: nn.Module, batches: list[Batch], rates: list[float], **changes: Any) -> tuple[float, list[float]]:
    optimizer = changes.get("optimizer") or torch.optim.SGD(model.parameters(), lr=123.0)
    shown: list[float] = []
    return loop.train_epoch(model, batches, optimizer, BOTH, rates, shown.append), shown


@unhurried
@given(st.integers(1, 300), st.floats(1e-6, 1.0), st.data())
def test_a_constant_learning_rate_is_constant(total: int, lr: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert loop.learning_rate(step, total, OptimSettings(lr=lr)) == lr


@unhurried
@given(st.integers(1, 500), st.floats(1e-6, 1.0))
def test_one_cycle_rises_to_the_peak_and_falls_to_nearly_0(total: int, lr: float) -> None:
    rates = [loop.learning_rate(step, total, OptimSettings(lr=lr, schedule="one-cycle")) for step in range(total)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(lr)
    assert all(rate > 0 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak <= max(1, 0.1 * total + 1)
    if total >= 30:
        assert rates[-1] < 0.01 * lr
        assert rates[0] < 0.5 * lr


def test_one_cycle_of_known_steps() -> None:
    rates = [loop.learning_rate(step, 20, ONE_CYCLE) / ONE_CYCLE.lr for step in (0, 1, 2, 11, 19)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.5 * (1 + math.cos(math.pi * 17 / 18))])


def test_training_lowers_the_loss_and_finds_the_square() -> None:
    torch.manual_seed(0)
    model = build(ModelSettings(encoder="tu-test_efficientnet", weights="none"))
    samples = [a_sample(str(seed), seed) for seed in range(8)]
    batches = [a_batch(*samples[:4]), a_batch(*samples[4:])]
    optimizer = torch.optim.AdamW(model.parameters())
    losses = [train(model, batches, [1e-2, 1e-2], optimizer=optimizer)[0] for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]
    assert losses[0] > 0.8


def test_a_step_is_that_of_the_mean_over_the_images() -> None:
    samples = [a_sample(str(seed), seed) for seed in range(3)]
    model, plain = Pixelwise(), Pixelwise()
    train(model, [a_batch(*samples)], [0.7])
    batch = a_batch(*samples)
    bce_dice(plain(batch.images), batch.masks, BOTH).mean().backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(found, expected - 0.7 * expected.grad)
        assert found != expected


def test_a_rank_with_part_of_a_global_batch_takes_its_share_of_the_step() -> None:
    samples = [a_sample(str(seed), seed) for seed in range(2)]
    whole, share = Pixelwise(), Pixelwise()
    start = [parameter.detach().clone() for parameter in whole.parameters()]
    train(whole, [a_batch(*samples)], [0.5])
    train(share, [a_batch(*samples, global_size=8)], [0.5])
    for first, one, other in zip(start, whole.parameters(), share.parameters(), strict=True):
        torch.testing.assert_close(other - first, (one - first) / 4)


def test_the_epochs_loss_is_the_mean_over_images_not_over_batches() -> None:
    samples = [a_sample(str(seed), seed) for seed in range(4)]
    model = Pixelwise()
    batches = [a_batch(*samples[:3]), a_batch(samples[3])]
    with torch.no_grad():
        each = torch.cat([bce_dice(model(batch.images), batch.masks, BOTH) for batch in batches])
    mean, shown = train(model, batches, [0.0, 0.0])
    assert mean == pytest.approx(float(each.mean()), rel=1e-6)
    assert shown == pytest.approx([float(each[:3].mean()), float(each[3])], rel=1e-6)
    assert mean != pytest.approx(sum(shown) / 2, rel=1e-4)


def test_every_step_has_its_own_rate() -> None:
    model = Pixelwise()
    used: list[list[float]] = []

    groups = [{"params": [parameter]} for parameter in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    optimizer.register_step_pre_hook(lambda *_: used.append([group["lr"] for group in optimizer.param_groups]))
    train(model, [a_batch(a_sample("a"))] * 3, [0.1, 0.2, 0.3], optimizer=optimizer)
    assert used == [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]
    with pytest.raises(ValueError, match="zip"):
        train(model, [a_batch(a_sample("a"))] * 3, [0.1, 0.2])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_says_what_to_do(value: float) -> None:
    model = Pixelwise()
    with torch.no_grad():
        model.scale.fill_(value)
    with pytest.raises(LungsegError, match=r"the loss became (nan|inf): lower --optim\.lr \(now 0\.25\)"):
        train(model, [a_batch(a_sample("a"))], [0.25])


def test_training_trains_and_evaluation_evaluates() -> None:
    model = Pixelwise()
    train(model, [a_batch(a_sample("a"))], [0.1])
    loop.evaluate(model, [a_batch(a_sample("a"))], 0.5)
    assert model.modes == [True, False]


def test_evaluation_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build(ModelSettings(encoder="tu-test_efficientnet", weights="none"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = a_batch(*[a_sample(str(seed), seed) for seed in range(3)])
    first, second = loop.evaluate(model, [batch], 0.5), loop.evaluate(model, [batch], 0.5)
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_image_is_counted_once_and_rows_are_sorted() -> None:
    samples = [a_sample(f"{name}", seed, dataset=name[0]) for seed, name in enumerate(["s2", "n9", "s1", "n1", "n5"])]
    rows = loop.evaluate(Pixelwise(), [a_batch(*samples[:2]), a_batch(*samples[2:])], 0.5)
    assert [(row["dataset"], row["image_id"]) for row in rows] == [
        ("n", "n1"),
        ("n", "n5"),
        ("n", "n9"),
        ("s", "s1"),
        ("s", "s2"),
    ]
    assert all(row["tp"] + row["fp"] + row["fn"] + row["tn"] == 64 * 64 for row in rows)


def test_a_rows_figures_are_those_of_its_own_image() -> None:
    samples = [a_sample(str(seed), seed) for seed in range(3)]
    rows = loop.evaluate(Pixelwise(), [a_batch(*samples)], 0.5)
    for sample, row in zip(samples, rows, strict=True):
        assert sample.mask is not None
        lung, predicted = sample.mask == 1, sample.image / 255.0 >= 0.5  # the model is 0.5 where the logit is 0
        assert row["tp"] == (lung & predicted).sum()
        assert row["fn"] == (lung & ~predicted).sum()
        assert row["fp"] == (~lung & predicted).sum()
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
        assert row["pixel_accuracy"] == pytest.approx((row["tp"] + row["tn"]) / 64**2)
        assert row["patient_id"] == sample.patient_id


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        (Geometry(32, 64, 32, 64, 16, 0, 64), 32 * 64),  # bars above and below
        (Geometry(80, 40, 64, 32, 0, 16, 64), 64 * 32),  # bars at the sides
        (Geometry(64, 128, 64, 128, 0, -32, 64), 64 * 64),  # cropped: no bars
    ],
    ids=["wide", "tall", "cropped"],
)
def test_padding_is_not_counted(geometry: Geometry, area: int) -> None:
    sample = a_sample("a", geometry=geometry)
    assert sample.mask is not None
    everywhere = Pixelwise()
    with torch.no_grad():
        everywhere.offset.fill_(50.0)
    (row,) = loop.evaluate(everywhere, [a_batch(sample)], 0.5)
    lung = int(sample.mask[geometry.content()].sum())
    assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (lung, area - lung, 0, 0)


def test_a_pixel_at_the_threshold_is_lung() -> None:
    model = Pixelwise()
    with torch.no_grad():
        model.scale.zero_()
        model.offset.zero_()  # a probability of one half everywhere
    for threshold, predicted in ((0.5, 64 * 64), (0.51, 0), (0.49, 64 * 64)):
        (row,) = loop.evaluate(model, [a_batch(a_sample("a"))], threshold)
        assert row["tp"] + row["fp"] == predicted


def test_averages_are_means_over_images() -> None:
    rows = [
        {"dice": 1.0, "iou": 1.0, "pixel_accuracy": 0.9, "tp": 10**6},
        {"dice": 0.5, "iou": 1 / 3, "pixel_accuracy": 0.6, "tp": 1},
    ]
    assert loop.averages(rows) == {
        "dice": pytest.approx(0.75),
        "iou": pytest.approx(2 / 3),
        "pixel_accuracy": pytest.approx(0.75),
    }
    assert all(math.isnan(value) for value in loop.averages([]).values())
