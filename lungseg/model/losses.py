"""Weighted sum of binary cross entropy and soft Dice loss, or a custom loss; one value per image."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lungseg.config import LossSettings
from lungseg.errors import SettingsError
from lungseg.model.custom_code import LOSS, ExtensionPoint, guarded, load_object

_SMOOTH = 1.0  # px; makes the Dice loss 0 if mask and prediction are both empty

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits f32[B,K,H,W], masks f32[B,K,H,W] in {0,1} -> f32[B]. A mask of a class that is not annotated is NaN."""

_ClassLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits f32[N,1,H,W], masks f32[N,1,H,W] in {0,1} -> f32[N]."""


def make_loss(settings: LossSettings, device: torch.device) -> Loss:
    """Return the loss of the settings, on a device: the mean over the annotated classes of each image.

    Raises:
        SettingsError: a custom loss cannot be imported. The returned function raises it if the custom loss fails or
            does not return one value per image.

    """
    if not settings.custom:
        return partial(mean_over_classes, class_loss=partial(bce_dice, settings=settings))
    custom_loss = load_object(LOSS, settings.custom)
    if isinstance(custom_loss, nn.Module):
        custom_loss.to(device)
    call = guarded(LOSS, settings.custom, custom_loss)

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        return require_losses(call(logits, masks), len(logits), LOSS, settings.custom)

    return partial(mean_over_classes, class_loss=loss)


def mean_over_classes(logits: Tensor, masks: Tensor, class_loss: _ClassLoss) -> Tensor:
    """Return the mean of a loss over the annotated classes of each image, f32[B]; 0 for an image without any.

    logits: f32[B,K,H,W]. masks: f32[B,K,H,W] in {0,1}, NaN where a class is not annotated. With one class the loss gets
    both as they are, with several all pairs of image and class as if they were images; those that are not annotated
    have empty masks and count nothing.
    """
    if masks.shape[1] == 1:
        return class_loss(logits, masks)
    is_known = ~masks[:, :, 0, 0].isnan()
    pairs = (logits.flatten(0, 1)[:, None], masks.nan_to_num().flatten(0, 1)[:, None])
    losses = class_loss(*pairs).view(is_known.shape)
    return losses.where(is_known, 0.0).sum(1) / is_known.sum(1).clamp(min=1)


def require_losses(losses: object, images: int, point: ExtensionPoint, path: str) -> Tensor:
    """Return losses f32[B] of custom code.

    Raises:
        SettingsError: they are not a tensor with one floating-point value per image.

    """
    if isinstance(losses, Tensor) and losses.shape == (images,) and losses.is_floating_point():
        return losses
    kind = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    raise SettingsError(
        f"{point.option} {path} returned {kind} for {images} images, expected shape ({images},): one loss for each "
        "image, averaged over its pixels"
    )


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
