"""Batch normalisation fitted to another hospital's pictures, of which no masks are needed.

Each layer's running mean and variance, learnt at one hospital, are replaced by those over the other's pictures; the
weights stay. Source: Li, Wang, Shi, Hou and Liu, Adaptive Batch Normalization for practical domain adaptation, Pattern
Recognition 80, 2018.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lungseg.errors import CheckpointError
from lungseg.model.precision import to_network_input

U8 = NDArray[np.uint8]


def adapt_batch_norm(model: nn.Module, batches: Iterator[Sequence[U8]]) -> Iterator[int]:
    """Fit a model, in place, to batches of prepared squares u8[S,S], equally many in each; yield how many it has seen.

    Two or more a batch: a layer over one value a picture has no variance else. Once all are seen the model is as it
    was but for its running statistics, the plain mean over the batches.

    Raises:
        CheckpointError: no layer of the network normalises batches.

    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise CheckpointError("the network has no batch normalisation that could be adapted: pass another model")
    model.eval()
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # every batch counts alike
        layer.train()
    device, seen = next(model.parameters()).device, 0
    with torch.inference_mode():
        for squares in batches:
            model(to_network_input(squares, device))
            seen += len(squares)
            yield seen
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    model.eval()
