"""Choose the precision of a forward pass and turn u8 squares into network inputs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lungseg.arrays import U8
from lungseg.config import Precision


def to_network_input(squares: Sequence[U8], device: torch.device) -> Tensor:
    """Bring prepared squares u8[S,S] onto a device as a network takes them: f32[B,1,S,S] in [0,1], channels last."""
    images = torch.from_numpy(np.stack(squares)[:, None]).to(device).float().div_(255.0)
    return images.contiguous(memory_format=torch.channels_last)


AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: Precision, device: torch.device) -> Precision:
    """Say what `auto` means on a device: bf16 on GPUs that have it, fp16 on others, fp32 on CPUs."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
