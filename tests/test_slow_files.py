"""The list of slow test files names existing ones."""

from pathlib import Path

import pytest

from tests.slow_files import SLOWEST

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", SLOWEST)
def test_file_has_slow_tests(file: str) -> None:
    assert "pytest.mark.slow" in (ROOT / file).read_text()
