"""Deferred imports: the skipped modules work normally afterwards."""

import subprocess
import sys

AFTERWARDS = """
import sys
import lungseg.inference.ensemble
missing = {'torch._dynamo', 'torch._dynamo.utils', 'wandb'}
assert not missing & set(sys.modules)

import torch
from lungseg.config import ModelSettings
from lungseg.model.network import build_network, skip_weight_init
with skip_weight_init():  # networks are built to be loaded, and predict
    network = build_network(ModelSettings(encoder='tu-test_efficientnet', weights='none')).eval()
with torch.inference_mode():
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)
assert not missing & set(sys.modules)

from torchvision.ops import roi_align  # asks, and is answered
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
asked = sys.modules['torchvision.ops.roi_align'].is_compile_supported
from torch._dynamo.utils import is_compile_supported as own
assert own.__module__ == 'torch._dynamo.utils' and asked is not own
assert asked('cpu') == own('cpu') and asked('mps') == own('mps')

from torchvision import tv_tensors  # what was not to be compiled is not
image = tv_tensors.Image(torch.ones(1, 2, 2))
assert type(tv_tensors.wrap(torch.zeros(1, 2, 2), like=image)) is tv_tensors.Image
def wrapped(tensor):
    return tv_tensors.wrap(tensor + 1, like=image) * 2
assert torch._dynamo.explain(wrapped)(torch.zeros(1, 2, 2)).graph_break_count >= 1

import wandb
assert callable(wandb.init)
"""
BEFORE = """
import sys, wandb, torch._dynamo
before = sys.modules['torch._dynamo']
import lungseg.model.lazy_imports
assert sys.modules['torch._dynamo'] is before and sys.modules['wandb'] is wandb
"""
ASKED = """
import torch
from lungseg.model import lazy_imports
with lazy_imports._without_slow_imports():
    assert type(torch._dynamo) is lazy_imports._PlaceholderModule
    assert torch._dynamo.reset.__module__ == 'torch._dynamo'
assert torch._dynamo.config.recompile_limit > 0 and torch._dynamo.disable is not lazy_imports._disable
"""
CALLED = """
import torch
from lungseg.model import lazy_imports
def plain(number):
    return number + 1
with lazy_imports._without_slow_imports():
    assert torch.compiler.disable(plain)(1) == 2
assert type(torch._dynamo) is not lazy_imports._PlaceholderModule
later = lazy_imports._disable
assert later(plain, recursive=False, wrapping=False)(1) == 2
assert later(reason='so')(plain)(1) == 2
assert later(type('Made', (), {'one': 1}))().one == 1
"""


def test_deferred_modules_work_after_the_import() -> None:
    assert run(AFTERWARDS) == (0, "")


def test_imported_modules_are_not_replaced() -> None:
    assert run(BEFORE) == (0, "")


def test_other_attributes_come_from_the_real_module() -> None:
    assert run(ASKED) == (0, "")


def test_disable_works_during_and_after_the_import() -> None:
    assert run(CALLED) == (0, "")


def run(code: str) -> tuple[int, str]:
    """Run a script of assertions in a process of its own: its status, and the end of what it complains of."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr[-2000:]
