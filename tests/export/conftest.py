from pathlib import Path

import pytest

from tests.export.prediction_files import DrawPair, write_predictions


@pytest.fixture
def predictions(tmp_path: Path, draw_pair: DrawPair) -> Path:
    return write_predictions(tmp_path / "predictions", draw_pair)
