import math

import pytest

from lungseg.report import charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.9, 1.0, [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]), (1, 2, [1.0, 1.2])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.round_ticks(low, high, 5)[: len(expected)] == pytest.approx(expected)


def test_histogram_counts_every_image() -> None:
    chart = charts.histogram([1.0, 1.0, 0.98, 0.5, 0.5], 0.5)
    plot = charts.HEIGHT - charts.BOTTOM - charts.TOP
    assert [round(height / plot * 2) for *_, height in chart.bars] == [2, 1, 2]
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for x, *_ in chart.bars)
    assert [tick.label for tick in chart.x_ticks] == ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert charts.histogram([1.0], 0.9).mean == charts.WIDTH - charts.RIGHT


def test_curve_skips_values_that_are_not_finite() -> None:
    rows = [{"epoch": epoch, "held_out_dice": 0.5 + epoch / 10, "loss": math.nan} for epoch in (1, 2, 3)]
    dice, loss = charts.learning_curves({"run": rows, "empty": []})["run"]
    assert loss is None
    assert dice is not None
    assert dice.last_value == "0.800"
    assert len(dice.points) == 3
    assert dice.points[0][1] > dice.points[2][1]
    assert [tick.label for tick in dice.x_ticks] == ["1", "2", "3"]
    assert charts.learning_curves({"run": []}) == {}


def test_curve_of_one_epoch_is_a_point() -> None:
    chart = charts.place_curve([(1, 0.9)], 0.9, 0.9, 1)
    assert chart is not None
    assert len(chart.points) == 1
    assert charts.axis_start([0.97]) == 0.9
    assert charts.axis_start([0.43]) == pytest.approx(0.4)
