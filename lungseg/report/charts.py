"""Coordinates of the report's charts; report.html draws them as SVG."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lungseg.arrays import Row

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 32
"""Margins around the plot for ticks and labels, in units of the SVG view box."""

_BINS = 40
_TICK_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scale:
    """A linear map from values low..high to positions start..end."""

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        """Return the position of a value, rounded to 0.01."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A metric over epochs. last_value: label of the last point."""

    points: Points
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    last_value: str


@dataclass(frozen=True)
class Histogram:
    """Number of images by Dice. bars: (x, y, width, height). mean: x position of the mean."""

    bars: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    mean: float


def learning_curves(runs: Mapping[str, Sequence[Row]]) -> dict[str, tuple[Curve | None, Curve | None]]:
    """Place the Dice (of the validation fold, else held-out) and the loss of each run, all on the same axes."""
    rows = [row for run_rows in runs.values() for row in run_rows]
    if not rows:
        return {}
    epochs = max(row["epoch"] for row in rows)
    low = axis_start([_dice(row) for row in rows if math.isfinite(_dice(row))])
    high = max((row["loss"] for row in rows if math.isfinite(row["loss"])), default=1.0)
    return {
        name: (
            place_curve([(row["epoch"], _dice(row)) for row in run_rows], low, 1.0, epochs),
            place_curve([(row["epoch"], row["loss"]) for row in run_rows], 0.0, high, epochs),
        )
        for name, run_rows in runs.items()
        if run_rows
    }


def _dice(row: Row) -> float:
    dice = row.get("validation_dice", row.get("held_out_dice"))
    return math.nan if dice is None else float(dice)


def place_curve(values: Sequence[tuple[int, float]], low: float, high: float, epochs: int) -> Curve | None:
    """Place (epoch, value) pairs on axes of 1..epochs and low..high; None if no value is finite."""
    finite = [(epoch, value) for epoch, value in values if math.isfinite(value)]
    if not finite:
        return None
    x_scale, y_scale = Scale(1, max(epochs, 2), LEFT, WIDTH - RIGHT), _y_scale(low, high)
    points = tuple((x_scale.position(epoch), y_scale.position(value)) for epoch, value in finite)
    integers = [value for value in round_ticks(1, max(epochs, 2), 5) if value >= 1 and value == int(value)]
    x_ticks = tuple(Tick(x_scale.position(value), f"{value:.0f}") for value in dict.fromkeys([1.0, *integers]))
    return Curve(points, x_ticks, _y_ticks(y_scale), f"{finite[-1][1]:.3f}")


def histogram(values: Sequence[float], low: float) -> Histogram:
    """Count Dice values in bins of low..1; charts with the same `low` have the same bins."""
    bin_width = (1.0 - low) / _BINS
    counts = Counter(min(int((value - low) / bin_width), _BINS - 1) for value in values)
    x_scale, y_scale = Scale(low, 1.0, LEFT, WIDTH - RIGHT), _y_scale(0, max(counts.values()))
    baseline = y_scale.position(0)
    bars = []
    for number, count in sorted(counts.items()):
        left, right = x_scale.position(low + number * bin_width), x_scale.position(low + (number + 1) * bin_width)
        height = max(baseline - y_scale.position(count), 1.5)  # so that one image among thousands is visible
        bars.append((left, round(baseline - height, 2), round(right - left - 0.6, 2), round(height, 2)))
    x_ticks = tuple(Tick(x_scale.position(value), f"{value:g}") for value in round_ticks(low, 1.0, 5))
    y_ticks = tuple(tick for tick in _y_ticks(y_scale, 3) if float(tick.label).is_integer())
    return Histogram(tuple(bars), x_ticks, y_ticks, x_scale.position(math.fsum(values) / len(values)))


def axis_start(values: Sequence[float]) -> float:
    """Return the start of a Dice axis for these values: a multiple of 0.1, at most 0.9."""
    return min(math.floor(min(values, default=0.9) * 10 + 1e-9) / 10, 0.9)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values within low..high."""
    raw_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw_step))
    step = next(factor * power for factor in _TICK_STEPS if factor * power >= raw_step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _y_scale(low: float, high: float) -> Scale:
    return Scale(low, high if high > low else low + 1.0, HEIGHT - BOTTOM, TOP)


def _y_ticks(y_scale: Scale, count: int = 4) -> tuple[Tick, ...]:
    return tuple(Tick(y_scale.position(value), f"{value:g}") for value in round_ticks(y_scale.low, y_scale.high, count))
