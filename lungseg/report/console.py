"""The report's tables on the terminal, and how a figure is worded there and on the page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lungseg.arrays import Row
from lungseg.report.prediction_results import Predictions
from lungseg.report.study_results import Study
from lungseg.study import cross_dataset
from lungseg.study.study_comparison import StudyComparison

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
_DATASET = _Column("data set", "dataset")
_STUDY = (_Column("run", "run"), _Column("role", "role"), _DATASET, _IMAGES, *_DICE, *_OVERLAP)
_UNFINISHED = (_Column("run", "run"), _Column("state", "state"), _Column("epochs so far", "epochs", 0))
_TRAINING = _Column("in training", "training")
_NO_REFERENCE = _Column("no ref.", "without_reference", 0)
_DISTANCES = (_Column("HD95", "hd95_px", 2), _Column("ASSD", "assd_px", 2))
_PREDICTIONS = (_DATASET, _TRAINING, _IMAGES, _NO_REFERENCE, *_DICE, *_OVERLAP, *_DISTANCES)
_CODES = (_DATASET, _Column("status", "status"), _Column("reason code", "code"), _IMAGES)


def print_report(
    study: Study, compared: Sequence[StudyComparison], predictions: Predictions | None, notes: Sequence[str]
) -> None:
    """Print every table and note on standard output."""
    # Never narrower, on a terminal neither: a line that wraps can be read, a figure that is cut cannot.
    width = max(_WIDTH, Console(file=sys.stdout).width)
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=width)
    for table in study.tables:
        about, joint = table.about, f"all {table.about['runs']} runs"
        rows = [line.as_json() for line in table.lines] + [{"run": joint, **line.as_json()} for line in table.all_runs]
        title = f"{study.name}: trained on {join_names(about['train_on'])} ({about['protocol']})"
        _print(console, (title, describe_metrics(about)), _STUDY, rows)
    cross_dataset.print_results(study.matrix, console)
    if compared:
        _print(
            console, ("Against other studies", "this study minus the other, on images that both were tested on"), (), ()
        )
        for one in compared:
            console.print(Text(_plain(str(one))))
        console.print()
    if study.unfinished:
        _print(console, (f"{study.name}: runs without figures", ""), _UNFINISHED, study.unfinished)
    if predictions is not None:
        _show_predictions(console, predictions)
    for note in notes:
        console.print(Text(_plain(f"Note: {note}")))


def _show_predictions(console: Console, predictions: Predictions) -> None:
    about = predictions.about
    said = f"{describe_metrics(about)}; HD95 and ASSD in px"
    _print(
        console,
        (f"Predictions of {predicting_runs(about['runs'])}", said),
        _PREDICTIONS,
        [line.as_json() for line in predictions.lines],
    )
    title = f"{about['inputs']} inputs: {format_counts(about['counts'])}"
    _print(console, (title, ""), _CODES if predictions.codes else (), predictions.codes)


def _print(console: Console, head: tuple[str, str], columns: Sequence[_Column], rows: Sequence[Row]) -> None:
    """Print a title, how the figures were made, and the table."""
    console.print(Text(_plain(head[0]), style="bold"))
    if head[1]:
        console.print(Text(_plain(head[1]), style="dim"))
    if rows:
        wide = _table(columns, rows, gap=2)
        fits = console.measure(wide, options=console.options.update(width=10 * console.width)).maximum <= console.width
        console.print(wide if fits else _table(columns, rows, gap=1))
    console.print()


def _table(columns: Sequence[_Column], rows: Sequence[Row], gap: int) -> RichTable:
    table = RichTable(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        figure = column.decimals is not None
        table.add_column(column.head, justify="right" if figure else "left", no_wrap=figure, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(format_number(row[one.key], one.decimals))) for one in columns))
    return table


def format_number(value: Any, decimals: int | None) -> str:
    """Write a figure with so many decimals, a word as it is, and what is not there as a dash."""
    if value is None:
        return "-"
    return str(value) if decimals is None else f"{value:.{decimals}f}"


def _plain(text: str) -> str:
    """Take out what could steer a terminal: names come from files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def describe_metrics(about: Row) -> str:
    """Say how a table's figures were made."""
    steps = [name for name, value in about.get("postprocess", {}).items() if value]
    after = f", post-processed ({', '.join(steps)})" if steps else ""
    after += ", mirrored too" if about.get("tta") == "flip" else ""
    threshold = about["threshold"] if isinstance(about["threshold"], str) else f"{about['threshold']:g}"
    return f"{about['aggregation']}, at {about['resolution']}, threshold {threshold}{after}"


def predicting_runs(runs: Sequence[str]) -> str:
    """Name the runs whose models predicted."""
    return runs[0] if len(runs) == 1 else f"the mean of {len(runs)} runs"


def format_counts(found: dict[str, int]) -> str:
    """Write counts by status."""
    return ", ".join(f"{count} {status}" for status, count in found.items()) or "none"


def join_names(names: Sequence[str]) -> str:
    """Write the names of data sets that belong together."""
    return " + ".join(names)
