"""The floating-point precision of a model, and where it can be used."""

from typing import Literal

from lungseg.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def require_fp16_device(precision: Precision, on_gpu: bool, option: str) -> None:
    """Refuse fp16 on CPUs, which have no fast arithmetic for it.

    Raises:
        SettingsError: `option` asks for fp16 and the model runs on CPUs.

    """
    if precision == "fp16" and not on_gpu:
        raise SettingsError(f"{option} fp16 on a CPU: fp16 needs a GPU; pass bf16 or fp32")
