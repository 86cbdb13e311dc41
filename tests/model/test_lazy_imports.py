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
with skip_weight_init():
    network = build_network(ModelSettings(encoder='tu-test_efficientnet', weights='none')).eval()
with torch.inference_mode():
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)
assert not missing & set(sys.modules)

from torchvision import tv_tensors  # a function excluded from compilation; its first call loads torch._dynamo
image = tv_tensors.Image(torch.ones(1, 2, 2))
assert type(tv_tensors.wrap(torch.zeros(1, 2, 2), like=image)) is tv_tensors.Image
def wrap(tensor):
    return tv_tensors.wrap(tensor + 1, like=image) * 2
assert torch._dynamo.explain(wrap)(torch.zeros(1, 2, 2)).graph_break_count >= 1

from torchvision.ops import roi_align  # calls is_compile_supported
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
deferred = sys.modules['torchvision.ops.roi_align'].is_compile_supported
from torch._dynamo.utils import is_compile_supported as real
assert real.__module__ == 'torch._dynamo.utils' and deferred is not real
assert deferred('cpu') == real('cpu') and deferred('mps') == real('mps')

import wandb
assert callable(wandb.init)
"""
DURING = """
import sys, torch
from lungseg.model import lazy_imports

def plain(number):
    return number + 1

def is_real(module):
    return hasattr(module, '__file__')

with lazy_imports.without_slow_imports():
    disable = torch._dynamo.disable
    deferred = torch.compiler.disable(plain)
    assert not is_real(torch._dynamo) and not is_real(sys.modules['torch._dynamo'])
    assert torch._dynamo.reset.__module__ == 'torch._dynamo'  # loads the real module
    assert deferred(1) == 2
assert torch._dynamo.config.recompile_limit > 0 and torch._dynamo.disable is not disable and is_real(torch._dynamo)

assert disable(plain, recursive=False, wrapping=False)(1) == 2
assert disable(reason='test')(plain)(1) == 2
assert disable(type('Example', (), {'one': 1}))().one == 1

import wandb
loaded = sys.modules['torch._dynamo']
with lazy_imports.without_slow_imports():
    assert sys.modules['torch._dynamo'] is loaded and sys.modules['wandb'] is wandb
assert sys.modules['torch._dynamo'] is loaded and sys.modules['wandb'] is wandb
"""


def test_deferred_modules_work_after_the_import() -> None:
    assert run(AFTERWARDS) == (0, "")


def test_deferred_modules_load_on_use_and_loaded_ones_stay() -> None:
    assert run(DURING) == (0, "")


def run(code: str) -> tuple[int, str]:
    """Run assertions in a new process; return its exit status and the end of its error output."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr[-2000:]
