"""AdaBN: adapt batch normalisation to images of another hospital, without masks.

The running mean and variance of each layer are replaced by those of the new images; the weights stay. Source: Li, Wang,
Shi, Hou and Liu, Adaptive Batch Normalization for practical domain adaptation, Pattern Recognition 80, 2018.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lungseg.arrays import U8
from lungseg.errors import CheckpointError
from lungseg.model.precision import to_network_input


def adapt_batch_norm(model: nn.Module, batches: Iterator[Sequence[U8]]) -> Iterator[int]:
    """Adapt a model in place to batches of prepared images u8[S,S]; yield the number of images seen so far.

    All batches must have the same size, at least 2: a layer with one value an image has no variance otherwise. The
    running statistics become the plain mean over the batches. Nothing else has changed once the iterator is exhausted.

    Raises:
        CheckpointError: the network has no batch normalisation.

    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        raise CheckpointError("the network has no batch normalisation to adapt: pass another model")
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # every batch has the same weight
        layer.train()
    device, image_count = next(model.parameters()).device, 0
    with torch.inference_mode():
        for squares in batches:
            model(to_network_input(squares, device))
            image_count += len(squares)
            yield image_count
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
