"""Exponential moving average of a network's weights, computed on its device without waiting for it."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the parameters and buffers of a network; counters are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.module = copy.deepcopy(model)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the network, faster in early updates, as in TensorFlow's ExponentialMovingAverage."""
        self.updates += 1
        averages, values = _tensors(self.module), _tensors(model)
        is_copied = [self.updates == 1 or not value.is_floating_point() for value in values]
        if any(is_copied):
            torch._foreach_copy_(_where(averages, is_copied), _where(values, is_copied))
        is_moved = [not copied for copied in is_copied]
        if any(is_moved):
            decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(_where(averages, is_moved), _where(values, is_moved), 1.0 - decay)


def _where(tensors: list[Tensor], selected: list[bool]) -> list[Tensor]:
    return [tensor for tensor, keep in zip(tensors, selected, strict=True) if keep]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
