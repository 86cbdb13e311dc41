"""A digest of the code that defines the training method: network, loss, optimizer steps, augmentation, folds, metrics.

It is part of a run's name. So a run that was trained with another loss formula is another run, whose figures and
checkpoints are not mixed with those of this code. Comments, docstrings and blank lines do not count.
"""

import ast
import functools
import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_METHOD = (
    "dataset/folds.py",
    "imaging/geometry.py",
    "metrics/segmentation.py",
    "model/losses.py",
    "model/network.py",
    "model/pretrained.py",
    "training/augment.py",
    "training/epoch_loop.py",
    "training/evaluation.py",
    "training/loader.py",
    "training/train_step.py",
)


@functools.cache
def method_digest() -> str:
    """Return the digest of the modules of the method, 12 hexadecimal digits."""
    content = hashlib.sha256()
    for name in _METHOD:
        content.update("\n".join([name, *statements((_PACKAGE / name).read_text(encoding="utf-8"))]).encode())
    return content.hexdigest()[:12]


def statements(source: str) -> list[str]:
    """Return the lines of a module without docstrings, comment lines and blank lines.

    The lines themselves, not the syntax tree, whose printed form differs between versions of Python.
    """
    ignored: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_text and isinstance(first.value.value, str):  # type: ignore[union-attr]
            ignored.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))  # type: ignore[union-attr]
    lines = enumerate(source.splitlines(), 1)
    return [line.rstrip() for number, line in lines if number not in ignored and _is_code(line)]


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")
