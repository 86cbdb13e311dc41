"""A trial of the user's own code in the driver, before any worker starts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lungseg.config import TrainSettings
from lungseg.errors import SettingsError
from lungseg.model.custom_code import LOSS, NETWORK, STEP, ExtensionPoint, errors_of, guarded, load_object
from lungseg.model.losses import make_loss, require_losses
from lungseg.model.network import build_network
from lungseg.training.custom_augmentation import CustomAugmentation

_CPU = torch.device("cpu")
_SIDE = 64  # px, of the trial images of a loss and a step


def check_custom_code(settings: TrainSettings, size: int, classes: int = 1) -> None:
    """Import every custom object that the settings name, and call each once.

    size: side of the prepared images, px. classes: their number.

    Raises:
        SettingsError: an object cannot be imported, fails, or returns something else than expected.

    """
    if settings.model.custom:
        _check_network(settings, size, classes)
    if settings.loss.custom:
        logits, masks = torch.zeros(2, 1, _SIDE, _SIDE, requires_grad=True), _masks(_SIDE)
        _require_gradient(make_loss(settings.loss, _CPU)(logits, masks), logits, LOSS, settings.loss.custom)
    if settings.augment.custom:
        image, drawn = np.zeros((size, size), np.uint8), np.zeros((classes, size, size), np.uint8)
        drawn[:, size // 4 : size // 2, size // 4 : size // 2] = 1
        CustomAugmentation(settings.augment.custom)(image, drawn, (settings.seed, 0, "trial"))
    if settings.optim.custom_step:
        _check_step(settings, classes)


def _check_network(settings: TrainSettings, size: int, classes: int) -> None:
    path, network = settings.model.custom, build_network(settings.model)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SettingsError(f"{NETWORK.option} {path} returned a network without weights to train")
    with errors_of(NETWORK, path), torch.no_grad():
        logits: Any = network.train()(torch.zeros(2, 1, size, size))
    shape, expected = (2, 1, size, size), (2, classes, size, size)
    actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if actual != expected:
        raise SettingsError(f"{NETWORK.option} {path}: its network gives {actual} for {shape}, expected {expected}")


def _check_step(settings: TrainSettings, classes: int) -> None:
    path, network = settings.optim.custom_step, nn.Conv2d(1, classes, 1)
    step = guarded(STEP, path, load_object(STEP, path))
    losses = step(network, torch.zeros(2, 1, _SIDE, _SIDE), _masks(_SIDE, classes), make_loss(settings.loss, _CPU))
    assert network.bias is not None
    _require_gradient(require_losses(losses, 2, STEP, path), network.bias, STEP, path)


def _require_gradient(losses: Tensor, source: Tensor, point: ExtensionPoint, path: str) -> None:
    if losses.requires_grad:
        with errors_of(point, path):
            losses.sum().backward()  # type: ignore[no-untyped-call]
    if source.grad is None:
        raise SettingsError(f"{point.option} {path} returned losses without a gradient, so nothing would be learned")
    if not bool(torch.isfinite(losses).all()):
        raise SettingsError(f"{point.option} {path} returned {losses.tolist()} for logits of 0, expected finite values")


def _masks(side: int, classes: int = 1) -> Tensor:
    """Return the masks f32[2,K,S,S] of two images, one of them empty."""
    masks = torch.zeros(2, classes, side, side)
    masks[0, :, side // 4 : side // 2, side // 4 : side // 2] = 1.0
    return masks
