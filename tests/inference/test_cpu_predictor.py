"""A predictor on CPUs leaves the GPUs of its node alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import PredictOptions
from lungseg.model import checkpoint


def test_predictor_on_cpus_never_asks_for_a_gpu(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("a predictor on CPUs called CUDA")

    for name in ("is_available", "device_count", "current_device", "init", "_lazy_init", "is_bf16_supported", "Stream"):
        monkeypatch.setattr(torch.cuda, name, refused)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    predictor = Predictor(checkpoint.find_all(str(trained))[0], PredictOptions("cpu"))
    assert predictor.probabilities([np.zeros((64, 64), np.uint8)]).shape == (1, 1, 64, 64)
