"""Damaged files of every stage are refused in words for a user: never a traceback, a crash, or a hang."""

from pathlib import Path

import pytest

from tests.fuzz.file_kinds import KINDS
from tests.fuzz.runner import first_of_today, problems

_SLOW = {"study": 25, "predictions": 60}  # a report is drawn for each case
_TOTAL = 1800


def _counts(divisor: int) -> dict[str, int]:
    slow = {kind.name: _SLOW[part] for kind in KINDS if (part := kind.name.partition("/")[0]) in _SLOW}
    others = [kind.name for kind in KINDS if kind.name not in slow]
    shares = {**slow, **dict.fromkeys(others, (_TOTAL - sum(slow.values())) // len(others))}
    return {f"file_kinds.{name}": max(1, count // divisor) for name, count in shares.items()}


def test_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    assert problems(tmp_path, _counts(divisor=30)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    counts = _counts(divisor=1)
    assert sum(counts.values()) >= 1750
    assert problems(tmp_path, counts, first_of_today()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_weights_and_states_are_refused_in_words(tmp_path: Path) -> None:
    counts = {"model_kinds.model.safetensors": 30, "model_kinds.state.pt": 30}
    assert problems(tmp_path, counts, first_of_today()) == []
