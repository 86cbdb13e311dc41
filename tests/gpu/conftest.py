"""Tests that need one or two GPUs and no Ray: `python -m pytest tests/gpu`. They skip elsewhere, and say why.

LUNGSEG_TEST_DEVICE=cpu runs what can also run on CPUs, to test these tests where there is no GPU.
"""

from pathlib import Path

import pytest
import torch

from tests.gpu.runs import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpus = torch.cuda.device_count()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        needed = 2 if item.path.name == "test_two_gpus.py" else 1
        if DEVICE.type == "cuda" and gpus < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} GPU{'s' * (needed > 1)}, this machine has {gpus}"))
        elif DEVICE.type == "cpu" and item.get_closest_marker("only_on_gpus"):
            item.add_marker(pytest.mark.skip(reason="CPUs have nothing like this"))
