from pathlib import Path

import numpy as np
import pytest

from lungseg.errors import InputError
from lungseg.pipelines import results


def test_figures_leave_out_what_has_no_reference() -> None:
    rows = [{"dice": dice, "iou": dice, "pixel_accuracy": dice} for dice in (0.5, 1.0, None)]
    found = results.figures(rows)
    assert (found["images"], found["dice"], found["dice_min"]) == (3, 0.75, 0.5)
    assert results.figures(rows[2:])["dice"] is None


def test_an_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.02, 400).tolist()
    low, high = results.interval(values)
    assert low is not None
    assert high is not None
    assert high - low == pytest.approx(2 * 1.96 * 0.02 / 20, rel=0.15)
    assert results.interval(values) == (low, high)
    assert results.interval([0.9]) == (None, None)


def test_an_epoch_that_was_done_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "loss": 3}\n{"epoch": 2, "loss": 2}\n{"epoch": 2, "loss": 1}\n')
    assert [row["loss"] for row in results._read_curve(str(path))] == [3, 1]
    path.write_text('{"epoch": 1')
    with pytest.raises(InputError, match="damaged"):
        results._read_curve(str(path))
