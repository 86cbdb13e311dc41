"""BCE + Dice loss, one value per image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lungseg.config import LossSettings
from lungseg.model.losses import bce_dice, make_loss

torch.set_num_threads(1)  # two threads are ten times slower on a busy machine

BOTH = LossSettings()
no_deadline = settings(deadline=None)  # the first call of torch is slow on a busy machine


def a_batch(count: int, side: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(count, 1, side, side, generator=generator, dtype=dtype)
    masks = (torch.rand(count, 1, side, side, generator=generator) < 0.4).to(dtype)
    return logits, masks


def plain_formula(logits: NDArray[np.float64], mask: NDArray[np.float64], terms: LossSettings) -> float:
    """One image: mean cross entropy, and one minus soft Dice smoothed by one pixel."""
    p = 1.0 / (1.0 + np.exp(-logits))
    bce = -(mask * np.log(p) + (1.0 - mask) * np.log(1.0 - p)).mean()
    dice = 1.0 - (2.0 * (p * mask).sum() + 1.0) / (p.sum() + mask.sum() + 1.0)
    return float(terms.bce * bce + terms.dice * dice)


@no_deadline
@given(
    st.integers(1, 4),
    st.integers(0, 1000),
    st.floats(0.0, 5.0),
    st.floats(0.1, 5.0),
)
def test_loss_matches_the_formula(count: int, seed: int, bce: float, dice: float) -> None:
    terms = LossSettings(bce=bce, dice=dice)
    logits, masks = a_batch(count, seed=seed)
    losses = bce_dice(logits, masks, terms)
    assert losses.shape == (count,)
    expected = [plain_formula(logits[i].numpy(), masks[i].numpy(), terms) for i in range(count)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-10)


@no_deadline
@given(st.integers(2, 6), st.integers(0, 1000))
def test_loss_of_an_image_is_independent_of_its_batch(count: int, seed: int) -> None:
    logits, masks = a_batch(count, seed=seed)
    batch_loss = bce_dice(logits, masks, BOTH)
    image_losses = torch.cat([bce_dice(logits[i : i + 1], masks[i : i + 1], BOTH) for i in range(count)])
    torch.testing.assert_close(batch_loss, image_losses)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    torch.testing.assert_close(bce_dice(logits[order], masks[order], BOTH), batch_loss[order])


@pytest.mark.parametrize("terms", [BOTH, LossSettings(bce=0.0), LossSettings(dice=0.0)], ids=["both", "dice", "bce"])
def test_gradient_matches_the_numerical_gradient(terms: LossSettings) -> None:
    logits, masks = a_batch(2, side=3)
    assert torch.autograd.gradcheck(lambda x: bce_dice(x, masks, terms), logits.requires_grad_())


def test_gradient_of_an_image_is_independent_of_others() -> None:
    logits, masks = a_batch(3)
    logits.requires_grad_()
    bce_dice(logits, masks, BOTH)[1].backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().sum() > 0
    assert logits.grad[[0, 2]].abs().sum() == 0


def test_gradient_step_lowers_the_loss() -> None:
    logits, masks = a_batch(4)
    logits.requires_grad_()
    before = bce_dice(logits, masks, BOTH)
    before.sum().backward()
    assert logits.grad is not None
    assert (bce_dice(logits.detach() - logits.grad, masks, BOTH) < before).all()


@pytest.mark.parametrize("terms", [BOTH, LossSettings(bce=0.0), LossSettings(dice=0.0)], ids=["both", "dice", "bce"])
def test_perfect_prediction_has_low_and_inverted_has_high_loss(terms: LossSettings) -> None:
    _, masks = a_batch(2, side=16)
    sure = 40.0 * (2.0 * masks - 1.0)
    assert (bce_dice(sure, masks, terms) < 1e-9).all()
    assert (bce_dice(-sure, masks, terms) > 0.9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_mask_has_finite_loss_and_zero_if_predicted(dtype: torch.dtype) -> None:
    masks = torch.zeros(2, 1, 8, 8, dtype=dtype)
    logits = torch.stack([torch.full((1, 8, 8), -100.0, dtype=dtype), torch.full((1, 8, 8), 100.0, dtype=dtype)])
    logits.requires_grad_()
    losses = bce_dice(logits, masks, BOTH)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0, 100.0 + 1.0 - 1.0 / 65.0], rel=1e-6, abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_extreme_logits_stay_finite() -> None:
    masks = torch.ones(1, 1, 4, 4)
    for value in (-1e4, 1e4):
        logits = torch.full((1, 1, 4, 4), value, requires_grad=True)
        loss = bce_dice(logits, masks, BOTH)
        loss.sum().backward()
        assert logits.grad is not None
        assert torch.isfinite(loss).all()
        assert torch.isfinite(logits.grad).all()


def test_weights_scale_the_loss_terms() -> None:
    logits, masks = a_batch(3)
    bce, dice = (bce_dice(logits, masks, LossSettings(bce=b, dice=d)) for b, d in ((1.0, 0.0), (0.0, 1.0)))
    assert not torch.allclose(bce, dice)
    torch.testing.assert_close(bce_dice(logits, masks, LossSettings(bce=2.0, dice=0.5)), 2.0 * bce + 0.5 * dice)
    assert ((dice > 0) & (dice < 1)).all()


def test_float32_loss_matches_float64() -> None:
    logits, masks = a_batch(2, side=64)
    single = bce_dice(logits.float(), masks.float(), BOTH)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), bce_dice(logits, masks, BOTH), rtol=1e-5, atol=1e-6)


def test_a_class_that_is_not_annotated_counts_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 8, 8, generator=generator).requires_grad_()
    masks = (torch.rand(2, 3, 8, 8, generator=generator) > 0.5).float()
    masks[0, 1] = torch.nan
    losses = make_loss(BOTH, torch.device("cpu"))(logits, masks)
    alone = [
        [bce_dice(logits[i : i + 1, k : k + 1], masks[i : i + 1, k : k + 1], BOTH) for k in range(3)] for i in range(2)
    ]
    torch.testing.assert_close(losses[0], (alone[0][0][0] + alone[0][2][0]) / 2)
    torch.testing.assert_close(losses[1], torch.cat(alone[1]).mean())
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0, 1].any()
    assert logits.grad[1, 1].any()


def test_an_image_without_annotated_classes_has_no_loss() -> None:
    logits, masks = torch.zeros(1, 2, 8, 8, requires_grad=True), torch.full((1, 2, 8, 8), torch.nan)
    losses = make_loss(BOTH, torch.device("cpu"))(logits, masks)
    assert losses.tolist() == [0.0]
