"""Libraries imported without what they never need: and what was left out is itself again afterwards."""

import subprocess
import sys

import pytest

AFTERWARDS = {
    "neither is imported": "assert not {'torch._dynamo', 'torch._dynamo.utils', 'wandb'} & set(sys.modules)",
    "networks are built to be loaded, and predict": """
import torch
from lungseg.config import ModelSettings
from lungseg.model.network import build, without_weights
with without_weights():
    network = build(ModelSettings(encoder='tu-test_efficientnet', weights='none')).eval()
with torch.inference_mode():
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)
assert 'torch._dynamo' not in sys.modules
""",
    "torch._dynamo is torch's own": """
import torch
assert torch._dynamo.config.recompile_limit > 0
from torch._dynamo.utils import is_compile_supported
assert is_compile_supported.__module__ == 'torch._dynamo.utils'
""",
    "RoI align asks and is answered": """
import torch
from torchvision.ops import roi_align
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
asked = sys.modules['torchvision.ops.roi_align'].is_compile_supported
from torch._dynamo.utils import is_compile_supported as own
assert asked('cpu') == own('cpu') and asked('mps') == own('mps')
""",
    "what was not to be compiled is not": """
import torch
from torchvision import tv_tensors
image = tv_tensors.Image(torch.ones(1, 2, 2))
assert type(tv_tensors.wrap(torch.zeros(1, 2, 2), like=image)) is tv_tensors.Image
def wrapped(tensor):
    return tv_tensors.wrap(tensor + 1, like=image) * 2
breaks = torch._dynamo.explain(wrapped)(torch.zeros(1, 2, 2)).graph_break_count
assert breaks >= 1, breaks
""",
    "wandb is itself": "import wandb; assert callable(wandb.init)",
}


@pytest.mark.parametrize("check", AFTERWARDS.values(), ids=AFTERWARDS.keys())
def test_after_the_import(check: str) -> None:
    run(f"import sys\nimport lungseg.engine.predictor\n{check}")


def test_what_is_there_before_stays() -> None:
    run(
        "import sys, wandb, torch._dynamo\nbefore = sys.modules['torch._dynamo']\nimport lungseg.model.libraries\n"
        "assert sys.modules['torch._dynamo'] is before and sys.modules['wandb'] is wandb"
    )


def test_what_else_is_asked_meanwhile_the_real_one_answers() -> None:
    run(
        "import sys, torch\nfrom lungseg.model import libraries\n"
        "with libraries._put_off():\n"
        "    assert type(torch._dynamo) is libraries._Later\n"
        "    assert torch._dynamo.reset.__module__ == 'torch._dynamo'\n"
        "assert torch._dynamo.config.recompile_limit > 0 and torch._dynamo.disable is not libraries._disable\n"
    )


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
