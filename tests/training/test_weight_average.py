"""The moving average of weights: its arithmetic runs on the device. Its formula: test_train_step.py."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lungseg.training.weight_average import WeightAverage


class Operations(TorchDispatchMode):
    """Records the names of the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_an_update_reads_no_value_from_the_device() -> None:
    """Two operations an update, whatever the number of tensors; no copy between devices, no read of a number."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3))
    average = WeightAverage(model, 0.9)
    average.update(model)
    with Operations() as operations:
        average.update(model)
    assert [name for name in operations.names if name != "aten::detach"] == [
        "aten::_foreach_copy_",
        "aten::_foreach_lerp_",
    ]


def test_the_first_update_copies() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.9)
    nn.init.constant_(model.weight, 3.0)
    average.update(model)
    assert torch.equal(average.module.weight, model.weight)  # type: ignore[arg-type]
