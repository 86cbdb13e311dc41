"""A digest of the code that defines the training method: network, loss, optimizer steps, augmentation, folds, metrics.

It is part of a run's name. So a run that was trained with another loss formula is another run, whose figures and
checkpoints are not mixed with those of this code. Comments, docstrings and blank lines do not count.
"""

import functools
import hashlib
from pathlib import Path

from lungseg.config import TrainSettings
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
_WITH_BALANCE = ("training/balanced_epochs.py",)


def method_digest(settings: TrainSettings | None = None) -> str:
    """Return the digest of the modules of the method, 12 hexadecimal digits; without settings: of those of all runs."""
    names = _METHOD
    if settings is not None:
        names += (*(_WITH_TEACHER if settings.teacher else ()), *(_WITH_BALANCE if settings.balance_datasets else ()))
    return _digest(names)


@functools.cache
def _digest(names: tuple[str, ...]) -> str:
    content = hashlib.sha256()
    for name in names:
        content.update("\n".join([name, *statements((_PACKAGE / name).read_text(encoding="utf-8"))]).encode())
    return content.hexdigest()[:12]
