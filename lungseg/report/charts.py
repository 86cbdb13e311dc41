"""Where the marks of the report's charts lie: numbers only, report.html turns them into SVG."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 32
"""Room around the plot for ticks and labels, units of the view box."""

_BINS = 40
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)

Row = dict[str, Any]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scale:
    """A linear way from values low..high to positions start..end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Position of a value, rounded to what a screen can show."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One figure over epochs; last is the text beside its last point."""

    points: Points
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    last: str


@dataclass(frozen=True)
class Histogram:
    """How many images have which Dice; bars are (x, y, width, height), mean is the position of its line."""

    bars: tuple[tuple[float, float, float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    mean: float


def learning_curves(runs: Mapping[str, Sequence[Row]]) -> dict[str, tuple[Curve | None, Curve | None]]:
    """Draw each run's Dice (of its validation fold, else held-out) and loss over epochs, all on the same axes."""
    rows = [row for part in runs.values() for row in part]
    if not rows:
        return {}
    epochs = max(row["epoch"] for row in rows)
    low = axis_start([_dice(row) for row in rows if math.isfinite(_dice(row))])
    high = max((row["loss"] for row in rows if math.isfinite(row["loss"])), default=1.0)
    return {
        name: (
            place_curve([(row["epoch"], _dice(row)) for row in part], low, 1.0, epochs),
            place_curve([(row["epoch"], row["loss"]) for row in part], 0.0, high, epochs),
        )
        for name, part in runs.items()
        if part
    }


def _dice(row: Row) -> float:
    return float(row["validation_dice"] if "validation_dice" in row else row["held_out_dice"])


def place_curve(values: Sequence[tuple[int, float]], low: float, high: float, epochs: int) -> Curve | None:
    """Place (epoch, value) pairs in a plot of low..high by 1..epochs; None where there is no finite value."""
    finite = [(epoch, value) for epoch, value in values if math.isfinite(value)]
    if not finite:
        return None
    across, up = Scale(1, max(epochs, 2), LEFT, WIDTH - RIGHT), _upward(low, high)
    points = tuple((across.at(epoch), up.at(value)) for epoch, value in finite)
    wholes = [value for value in round_ticks(1, max(epochs, 2), 5) if value >= 1 and value == int(value)]
    x_ticks = tuple(Tick(across.at(value), f"{value:.0f}") for value in dict.fromkeys([1.0, *wholes]))
    return Curve(points, x_ticks, _y_ticks(up), f"{finite[-1][1]:.3f}")


def histogram(values: Sequence[float], low: float) -> Histogram:
    """Count Dice values of low..1 in bins that all charts of one `low` share."""
    size = (1.0 - low) / _BINS
    counts = Counter(min(int((value - low) / size), _BINS - 1) for value in values)
    across, up = Scale(low, 1.0, LEFT, WIDTH - RIGHT), _upward(0, max(counts.values()))
    floor = up.at(0)
    bars = []
    for number, count in sorted(counts.items()):
        left, right = across.at(low + number * size), across.at(low + (number + 1) * size)
        height = max(floor - up.at(count), 1.5)  # one image among thousands must still be seen
        bars.append((left, round(floor - height, 2), round(right - left - 0.6, 2), round(height, 2)))
    x_ticks = tuple(Tick(across.at(value), f"{value:g}") for value in round_ticks(low, 1.0, 5))
    y_ticks = tuple(tick for tick in _y_ticks(up, 3) if float(tick.text).is_integer())
    return Histogram(tuple(bars), x_ticks, y_ticks, across.at(math.fsum(values) / len(values)))


def axis_start(values: Sequence[float]) -> float:
    """Round down to where a Dice axis of these values begins: a multiple of 0.1 below 1."""
    return min(math.floor(min(values, default=0.9) * 10 + 1e-9) / 10, 0.9)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Choose about `count` round values within low..high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in _STEPS if one * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _upward(low: float, high: float) -> Scale:
    return Scale(low, high if high > low else low + 1.0, HEIGHT - BOTTOM, TOP)


def _y_ticks(up: Scale, count: int = 4) -> tuple[Tick, ...]:
    return tuple(Tick(up.at(value), f"{value:g}") for value in round_ticks(up.low, up.high, count))
