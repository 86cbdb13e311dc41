"""A digest of the code that defines the training method: network, loss, optimizer steps, augmentation, folds, metrics.

It is part of a run's name. So a run that was trained with another loss formula is another run, whose figures and
checkpoints are not mixed with those of this code. Comments, docstrings and blank lines do not count.
"""

import functools
import hashlib
from pathlib import Path

from lungseg.model.source_code import statements

_PACKAGE = Path(__file__).resolve().parents[1]
_METHOD = (
    "dataset/folds.py",
    "dataset/masked_rows.py",
    "imaging/geometry.py",
    "metrics/segmentation.py",
    "model/losses.py",
    "model/network.py",
    "model/pretrained.py",
    "training/augment.py",
    "training/batch_norm.py",
    "training/epoch_loop.py",
    "training/evaluation.py",
    "training/loader.py",
    "training/train_step.py",
    "training/transform.py",
    "training/weight_average.py",
)
_WITH_TEACHER = ("training/distillation.py",)


@functools.cache
def method_digest(has_teacher: bool = False) -> str:
    """Return the digest of the modules of the method, 12 hexadecimal digits.

    has_teacher: the run also learns from a trained model.
    """
    content = hashlib.sha256()
    for name in (*_METHOD, *(_WITH_TEACHER if has_teacher else ())):
        content.update("\n".join([name, *statements((_PACKAGE / name).read_text(encoding="utf-8"))]).encode())
    return content.hexdigest()[:12]
