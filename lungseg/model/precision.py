"""Precision of the forward pass, and conversion of u8 images to network inputs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lungseg.arrays import U8
from lungseg.config import Precision

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def to_network_input(squares: Sequence[U8], device: torch.device) -> Tensor:
    """Stack prepared images u8[S,S] on a device as f32[B,1,S,S] in [0,1], channels last."""
    return scaled(torch.from_numpy(np.stack(squares)[:, None]).to(device))


def scaled(images: Tensor) -> Tensor:
    """Convert images u8[B,1,S,S] on a device to f32[B,1,S,S] in [0,1], channels last."""
    return images.float().div_(255.0).contiguous(memory_format=torch.channels_last)


def resolve_precision(requested: Precision, device: torch.device) -> Precision:
    """Resolve `auto`: bf16 on GPUs that support it, fp16 on other GPUs, fp32 on CPUs."""
    if requested != "auto":
        return requested
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
