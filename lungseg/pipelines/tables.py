"""The report's tables on the terminal, and how a figure is worded there and on the page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lungseg.pipelines.results import Predictions, Row, Study

_WIDTH = 100  # columns of a table that goes into a file or another program


@dataclass(frozen=True)
class _Column:
    """A column of a terminal table: its head, its key, and how many decimals; None for words."""

    head: str
    key: str
    decimals: int | None = None


_DICE = (_Column("Dice", "dice", 4), _Column("Dice 5%", "dice_p5", 4), _Column("min", "dice_min", 4))
_OVERLAP = (_Column("IoU", "iou", 4), _Column("px acc.", "pixel_accuracy", 4))
_IMAGES = _Column("images", "images", 0)
_STUDY = (
    _Column("run", "run"), _Column("role", "role"), _Column("data set", "dataset"), _IMAGES, *_DICE, *_OVERLAP
)  # fmt: skip
_PREDICTIONS = (
    _Column("data set", "dataset"), _Column("in training", "training"), _IMAGES,
    _Column("no ref.", "without_reference", 0), *_DICE, *_OVERLAP,
    _Column("HD95", "hd95_px", 2), _Column("ASSD", "assd_px", 2),
)  # fmt: skip
_REASONS = (_Column("data set", "dataset"), _Column("status", "status"), _Column("reason", "reason"), _IMAGES)


def show(study: Study, predictions: Predictions | None, notes: Sequence[str]) -> None:
    """Print every table and note on standard output."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=_WIDTH)
    for table in study.tables:
        about, joint = table.about, f"all {table.about['runs']} runs"
        rows = [line.as_json() for line in table.lines] + [{"run": joint, **line.as_json()} for line in table.joint]
        title = f"{study.name}: trained on {join(about['train_on'])} ({about['protocol']})"
        console.print(_table(title, made(about), _STUDY, rows))
    if predictions is not None:
        about = predictions.about
        rows = [line.as_json() for line in predictions.lines]
        console.print(_table(f"Predictions of {about['run']}", f"{made(about)}; HD95, ASSD in px", _PREDICTIONS, rows))
        title = f"{about['inputs']} inputs: {counts(about['counts'])}"
        if predictions.reasons:
            console.print(_table(title, "", _REASONS, predictions.reasons))
        else:
            console.print(Text(_plain(title)))
    for note in notes:
        console.print(Text(_plain(f"Note: {note}")))


def _table(title: str, caption: str, columns: Sequence[_Column], rows: Sequence[Row]) -> RichTable:
    table = RichTable(
        title=Text(_plain(title)), caption=Text(_plain(caption)), title_justify="left", caption_justify="left",
        box=None, padding=(0, 2, 0, 0), pad_edge=False,
    )  # fmt: skip
    for column in columns:
        number = column.decimals is not None
        table.add_column(column.head, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(number(row[one.key], one.decimals))) for one in columns))
    return table


def number(value: Any, decimals: int | None) -> str:
    """Write a figure with so many decimals, a word as it is, and what is not there as a dash."""
    if value is None:
        return "–"
    return str(value) if decimals is None else f"{value:.{decimals}f}"


def _plain(text: str) -> str:
    """Take out what could steer a terminal: names come from files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def made(about: Row) -> str:
    """Say how a table's figures were made."""
    after = f", then {about['postprocess']}" if about.get("postprocess", "none") != "none" else ""
    return f"{about['aggregation']}, at {about['resolution']} size, lung from probability {about['threshold']:g}{after}"


def counts(found: dict[str, int]) -> str:
    """Write counts by status."""
    return ", ".join(f"{count} {status}" for status, count in found.items()) or "none"


def join(names: Sequence[str]) -> str:
    """Write the names of data sets that belong together."""
    return " + ".join(names)
