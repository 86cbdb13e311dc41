"""Kernels of a GPU that a run uses. Nothing here changes a CPU."""

import torch

from lungseg.config import ComputeSettings


def use_fast_kernels(compute: ComputeSettings, device: torch.device) -> dict[str, bool]:
    """Let a GPU choose its fastest kernels, in this process; return what was set, for the record of the run.

    TF32 rounds the factors of fp32 products to 10 bits, in convolutions (torch's default) and in matrix products.
    """
    if device.type != "cuda":
        return {}
    torch.backends.cudnn.benchmark = not compute.deterministic
    torch.set_float32_matmul_precision("high")
    return {"cudnn_benchmark": not compute.deterministic, "tf32": True, "fused_optimizer": True}
