"""The digest of the method changes with its code, and with nothing else."""

import shutil
from pathlib import Path

import pytest

from lungseg.model.source_code import statements
from lungseg.training import method_digest

SOURCE = '''"""A module."""

# A comment.
WEIGHT = 2.0


def loss(x: float) -> float:
    """Return the loss."""
    return WEIGHT * x  # doubled
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A module.", "Another text."),
        ("# A comment.\n", ""),
        ("  # doubled", ""),
        ("Return the loss.", "X."),
        ("\n\n\n", "\n"),
    ],
)
def test_texts_and_blank_lines_do_not_count(old: str, new: str) -> None:
    assert statements(SOURCE.replace(old, new)) == statements(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("2.0", "2.5"), ("WEIGHT * x", "WEIGHT + x"), ("loss(", "cost(")])
def test_statements_count(old: str, new: str) -> None:
    assert statements(SOURCE.replace(old, new)) != statements(SOURCE)


def test_changed_loss_formula_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(Path(method_digest.__file__).parents[1], tmp_path / "lungseg"))
    monkeypatch.setattr(method_digest, "_PACKAGE", copy)
    before = method_digest.method_digest.__wrapped__()
    losses = copy / "model" / "losses.py"
    losses.write_text(losses.read_text() + "\n# a comment\n")
    assert method_digest.method_digest.__wrapped__() == before
    losses.write_text(losses.read_text() + "\nEPSILON = 3\n")
    assert method_digest.method_digest.__wrapped__() != before


def test_changed_distillation_changes_runs_with_a_teacher_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(Path(method_digest.__file__).parents[1], tmp_path / "lungseg"))
    monkeypatch.setattr(method_digest, "_PACKAGE", copy)
    digest = method_digest.method_digest.__wrapped__
    without, with_teacher = digest(), digest(has_teacher=True)
    distillation = copy / "training" / "distillation.py"
    distillation.write_text(distillation.read_text() + "\nTEMPERATURE = 2\n")
    assert digest() == without
    assert digest(has_teacher=True) != with_teacher
