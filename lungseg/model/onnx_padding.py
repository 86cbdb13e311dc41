"""Make the padding of timm's convolutions part of the ONNX operator.

Where the stride is 2, TensorFlow pads one side more than the other, and networks converted from TensorFlow need this
padding. A convolution of torch cannot do it, so timm pads before, by a size that it computes from each image. In ONNX
these are about 60 operators for each convolution. Backends run many of them for each image, and int8 converts the
padded image to float and back.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import Tensor, nn
from torch.autograd import Function


def merge_padding(network: nn.Module) -> None:
    """Let each of timm's convolutions become one operator in ONNX, for images of the size that is exported."""
    for module in network.modules():
        # A subclass with a `forward` of its own keeps it.
        if isinstance(module, Conv2dSame) and type(module).forward is Conv2dSame.forward:
            module.forward = _PaddedForward(module)  # type: ignore[method-assign]


@dataclass(frozen=True)
class _PaddedForward:
    convolution: Conv2dSame

    def __call__(self, image: Tensor) -> Tensor:
        own = self.convolution
        size = [int(length) for length in image.shape[-2:]]
        padding = pad_same_arg(size, list(own.kernel_size), list(own.stride), list(own.dilation))
        options = _Options(padding, list(own.stride), list(own.dilation), own.groups)
        result: Tensor = _PaddedConvolution.apply(image, own.weight, own.bias, options)
        return result


@dataclass(frozen=True)
class _Options:
    """padding: left, right, top, bottom."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int


class _PaddedConvolution(Function):
    @staticmethod
    def forward(_context: Any, image: Tensor, weight: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
        padded = F.pad(image, options.padding)
        return F.conv2d(padded, weight, bias, options.stride, 0, options.dilation, options.groups)

    @staticmethod
    def symbolic(graph: Any, image: Any, weight: Any, bias: Any, options: _Options) -> Any:
        """Return the operator; ONNX lists the padding as top, left, bottom, right."""
        left, right, top, bottom = options.padding
        return graph.op(
            "Conv",
            *((image, weight) if bias is None else (image, weight, bias)),
            kernel_shape_i=weight.type().sizes()[2:],
            pads_i=[top, left, bottom, right],
            strides_i=options.stride,
            dilations_i=options.dilation,
            group_i=options.groups,
        )
