"""Weighted sum of binary cross entropy and soft Dice loss, one value per image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lungseg.config import LossSettings

_SMOOTH = 1.0  # px; makes the Dice loss 0 if mask and prediction are both empty


def bce_dice(logits: Tensor, masks: Tensor, settings: LossSettings) -> Tensor:
    """Compute the loss of each image: logits f32[B,1,H,W], masks f32[B,1,H,W] in {0,1} -> f32[B].

    One value per image, so that neither batch size nor world size changes the weight of an image.
    Source of the Dice term: Milletari et al., V-Net, 3DV 2016, equation in section 3, with linear denominators and a
    smoothing of one pixel.
    """
    axes = (1, 2, 3)
    total = logits.new_zeros(logits.shape[0])
    if settings.bce:
        total = total + settings.bce * F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(axes)
    if settings.dice:
        probabilities = torch.sigmoid(logits)
        overlap = (probabilities * masks).sum(axes)
        sizes = probabilities.sum(axes) + masks.sum(axes)
        total = total + settings.dice * (1.0 - (2.0 * overlap + _SMOOTH) / (sizes + _SMOOTH))
    return total
