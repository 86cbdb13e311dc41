from pathlib import Path

import pytest

from lungseg.arrays import Row
from tests.report.result_files import DrawPair, write_archive, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "runs" / "trial")


@pytest.fixture
def rows(tmp_path: Path, draw_pair: DrawPair) -> list[Row]:
    return write_archive(tmp_path / "archive", draw_pair)
