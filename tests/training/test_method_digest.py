"""The digest of the method changes with its code, and with nothing else."""

import shutil
from pathlib import Path

import pytest

from lungseg.config import TrainSettings
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package whose digests are computed anew each time."""
    copy = Path(shutil.copytree(Path(method_digest.__file__).parents[1], tmp_path / "lungseg"))
    monkeypatch.setattr(method_digest, "_PACKAGE", copy)
    monkeypatch.setattr(method_digest, "_digest", method_digest._digest.__wrapped__)
    return copy


def test_changed_loss_formula_changes_the_digest(package: Path) -> None:
    before = method_digest.method_digest()
    losses = package / "model" / "losses.py"
    losses.write_text(losses.read_text() + "\n# a comment\n")
    assert method_digest.method_digest() == before
    losses.write_text(losses.read_text() + "\nEPSILON = 3\n")
    assert method_digest.method_digest() != before


@pytest.mark.parametrize(
    ("settings", "module"),
    [(TrainSettings(teacher="lungs"), "distillation"), (TrainSettings(balance_datasets=True), "balanced_epochs")],
)
def test_code_that_only_some_runs_use_changes_their_digest_alone(
    package: Path, settings: TrainSettings, module: str
) -> None:
    before, own = method_digest.method_digest(TrainSettings()), method_digest.method_digest(settings)
    assert before == method_digest.method_digest()
    path = package / "training" / f"{module}.py"
    path.write_text(path.read_text() + "\nTEMPERATURE = 2\n")
    assert method_digest.method_digest(TrainSettings()) == before
    assert method_digest.method_digest(settings) not in (own, before)
