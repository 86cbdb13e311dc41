"""The tables of a measurement on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from lungseg.bench.timing import StageTimes

_MIN_WIDTH = 200  # columns: a terminal may wrap wider lines, but rich would cut names and numbers to fit


def print_tables(
    title: str, times: Sequence[StageTimes], scaling: Mapping[str, Sequence[Mapping[str, Any]]], notes: Sequence[str]
) -> None:
    """Print a table of the stages, one of the scaling, and notes."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    console.width = max(_MIN_WIDTH, console.width)
    console.print(title)
    console.print(_stage_table(times))
    for what, lines in scaling.items():
        console.print(_scaling_table(what, lines))
    for note in notes:
        console.print(note, soft_wrap=True)


def _stage_table(times: Sequence[StageTimes]) -> Table:
    has_device = any(entry.device_ms for entry in times)
    device_column = ["GPU"] if has_device else []
    table = _table("stage", "min", "median", "CPU", *device_column, "limit", "min", "CPU", "times the limit")
    path = ""
    for entry in times:
        if entry.stage.path != path:
            path = entry.stage.path
            table.add_row(f"{path}, ms an image")
        device = [_number(min(entry.device_ms, default=None))] if has_device else []
        table.add_row(
            f"  {'  ' if entry.stage.part_of else ''}{entry.stage.name}",
            _number(entry.best),
            _number(median(entry.ms)),
            _number(min(entry.cpu_ms)),
            *device,
            entry.stage.limit_name,
            _number(min(entry.limit_ms, default=None)),
            _number(min(entry.limit_cpu_ms, default=None)),
            "" if entry.ratio is None else f"{entry.ratio:.1f}",
        )
    return table


def _scaling_table(what: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(what, "images/s", "times one", "of ideal")
    for line in lines:
        share = line["speedup"] / line["workers"]
        table.add_row(
            f"  {line['workers']}", f"{line['images_per_second']:.1f}", f"{line['speedup']:.2f}", f"{share:.0%}"
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="left" if title == "limit" else "right")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
