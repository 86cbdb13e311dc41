"""Print the report's tables, and format values for the terminal and the page."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lungseg import storage
from lungseg.arrays import Row
from lungseg.metrics.detection import Estimate
from lungseg.predictions.overlays import select_doubtful
from lungseg.report import detection_results
from lungseg.report.detection_results import DetectionLine
from lungseg.report.prediction_results import Predictions
from lungseg.report.study_results import Study
from lungseg.study import result_text
from lungseg.study.study_comparison import StudyComparisons
from lungseg.study.study_differences import StudyDifference


@dataclass(frozen=True)
class _Column:
    """A column of a terminal table. decimals: of a number; None for text. is_wrapped: long text may wrap."""

    title: str
    key: str
    decimals: int | None = None
    is_wrapped: bool = False


_MIN_WIDTH = 100  # columns: a terminal may wrap wider lines, but rich would cut numbers to fit
_DICE = (_Column("Dice", "dice", 4), _Column("Dice 5%", "dice_p5", 4), _Column("min", "dice_min", 4))
_OVERLAP = (_Column("IoU", "iou", 4), _Column("px acc.", "pixel_accuracy", 4))
_DISTANCES = (_Column("HD95", "hd95_px", 2), _Column("ASSD", "assd_px", 2))
_IMAGES = _Column("images", "images", 0)
_CLASS = _Column("class", "class")
_DATASET = _Column("dataset", "dataset", is_wrapped=True)
# A fold is short and identifies a run of a table; report.json and report.html have the full run names.
_STUDY = (_Column("fold", "fold"), _Column("role", "role"), _DATASET, _IMAGES, *_DICE, *_OVERLAP)
_UNFINISHED = (_Column("run", "run"), _Column("epochs so far", "epochs", 0), _Column("state", "state", is_wrapped=True))
_TRAINING = _Column("in training", "training")
_NO_REFERENCE = _Column("no ref.", "without_reference", 0)
_PREDICTIONS = (_DATASET, _TRAINING, _IMAGES, _NO_REFERENCE, *_DICE, *_OVERLAP, *_DISTANCES)
_PREDICTIONS_ALONE = (_DATASET, _TRAINING, _IMAGES, _NO_REFERENCE)
_DOUBTFUL = (
    *(_Column("rank", "rank"), _Column("doubt", "doubt", 3), _Column("file", "name", is_wrapped=True)),
    _Column("reason", "reason", is_wrapped=True),
)
_MAX_DOUBTFUL = 5
_CLASSES = (_CLASS, _DATASET, _TRAINING, _IMAGES, *_DICE, _Column("IoU", "iou", 4), *_DISTANCES)
_MEASURES = (
    *(_Column("measure", "title"), _DATASET, _IMAGES, _Column("median", "median", 3)),
    *(_Column("5%", "p5", 3), _Column("95%", "p95", 3)),
)
_DETECTION = (
    *(_CLASS, _DATASET, _Column("with it", "present", 0), _Column("without", "absent", 0)),
    *(_Column("sensitivity", "sensitivity"), _Column("specificity", "specificity"), _Column("AUROC", "auroc")),
)
_CODES = (_DATASET, _Column("status", "status"), _Column("reason code", "code", is_wrapped=True), _IMAGES)


def print_report(
    study: Study | None, comparisons: StudyComparisons, predictions: Predictions | None, notes: Sequence[str]
) -> None:
    """Print every table and note on standard output."""
    width = max(_MIN_WIDTH, Console(file=sys.stdout).width)
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=width)
    if study is not None:
        _print_study(console, study, comparisons)
    if predictions is not None:
        _print_predictions(console, predictions)
    for note in notes:
        console.print(Text(_printable(f"Note: {note}")))


def _print_study(console: Console, study: Study, comparisons: StudyComparisons) -> None:
    for table in study.tables:
        about = table.about
        rows = [{**line.as_json(), "fold": _fold_text(line.about)} for line in table.lines]
        rows += [{"fold": "all", **line.as_json()} for line in table.all_runs]
        title = f"{study.name}: trained on {join_names(about['train_on'])} ({about['protocol']})"
        columns = (*_STUDY[:1], _CLASS, *_STUDY[1:]) if table.has_classes else _STUDY
        _print_table(console, (title, describe_metrics(about)), columns, rows)
        _print_detection(console, table.detection)
    result_text.print_results(study.matrix, console)
    _print_comparisons(console, study, comparisons)
    _print_differences(console, comparisons.differences)
    if study.unfinished:
        _print_table(console, (f"{study.name}: unfinished runs", ""), _UNFINISHED, study.unfinished)


def _print_comparisons(console: Console, study: Study, comparisons: StudyComparisons) -> None:
    """Print the comparisons within the study, with other studies, and of the generalisation gaps."""
    own = study.matrix.comparisons
    if own:
        _print_heading(console, "Comparison on the same images", _about_tests(item.paired.basis for item in own))
        for comparison in own:
            console.print(Text(_printable(result_text.format_comparison(comparison))))
        console.print()
    tables = (
        ("Comparison with other studies: Dice", [(pair.paired.basis, str(pair)) for pair in comparisons.pairs]),
        ("Change of the generalisation gap", [(gap.change.basis, str(gap)) for gap in comparisons.gaps]),
    )
    for title, rows in tables:
        if rows:
            _print_heading(console, title, "this study minus the other, on images that both tested")
            console.print(Text(_about_tests(basis for basis, _ in rows), style="dim"))
            for line in "\n".join(text for _, text in rows).split("\n"):
                console.print(Text(_printable(line)))
            console.print()


def _print_differences(console: Console, differences: Sequence[StudyDifference]) -> None:
    if not differences:
        return
    _print_heading(console, "What differs between the studies", "settings, data, code and libraries of the runs")
    for item in differences:  # as lines, because a table would cut long values
        console.print(Text(_printable(f"{item.name}: {item.this}; in {item.other_study}: {item.other}")))
    console.print()


def _about_tests(bases: Iterable[str]) -> str:
    return f"95 % interval and p {result_text.describe_basis(bases)}; Holm: p corrected over this table"


def _fold_text(about: Row) -> str:
    return f"{about['fold']} seed {about['seed']}" if about.get("seed") else str(about["fold"])


def describe_runs(about: Row) -> str:
    """Say how many folds, and seeds if several, a table covers."""
    folds = f"{about['trained_folds']} of {about['folds']} folds"
    return f"{folds}, {about['seeds']} seeds, {about['runs']} runs" if about["seeds"] > 1 else folds


def _print_predictions(console: Console, predictions: Predictions) -> None:
    about = predictions.about
    has_reference = any(line.dice for line in predictions.lines)
    rows = [line.as_json() for line in predictions.class_lines if line.dice]
    described = f"{describe_metrics(about)}; HD95 and ASSD in px"
    note = described if has_reference or rows else "no reference masks, so no metrics"
    columns = _PREDICTIONS if has_reference else _PREDICTIONS_ALONE
    heading = f"Predictions of {about['model_name']}", note
    _print_table(console, heading, columns, [line.as_json() for line in predictions.lines])
    if rows:
        note = "the table above is of both lungs together" if has_reference else ""
        _print_table(console, ("Classes", note), _CLASSES, rows)
    if predictions.measures:
        _print_table(console, ("Measures of the masks", ""), _MEASURES, predictions.measures)
    _print_detection(console, predictions.detection)
    title = f"{about['inputs']} inputs: {format_counts(about['counts'])}"
    _print_table(console, (title, ""), _CODES, predictions.codes)
    doubtful = [
        {"rank": rank, "name": storage.name_of(row["source_uri"]), "doubt": row["doubt"], "reason": row["doubt_reason"]}
        for rank, row in select_doubtful(predictions.rows, _MAX_DOUBTFUL)
    ]
    if doubtful:
        title = f"Look at these images first: {len(doubtful)} of {about['predicted']} with a mask"
        _print_table(console, (title, "flagged ones, then those with the highest doubt"), _DOUBTFUL, doubtful)


def _print_detection(console: Console, lines: Sequence[DetectionLine]) -> None:
    if not lines:
        return
    rows = [_detection_row(line) for line in lines]
    _print_table(console, ("Detection", "95 % intervals over patients; see report.html"), _DETECTION, rows)
    if any(line.is_mixed for line in lines):
        console.print(Text(f"* {detection_results.MIXED}", style="dim"))
        console.print()


def _detection_row(line: DetectionLine) -> Row:
    detection = line.detection
    return {
        "class": line.about["class"],
        "dataset": f"{line.datasets_text}, {line.about['group']}",
        "present": detection.present,
        "absent": detection.absent,
        **{name: _format_estimate(getattr(detection, name)) for name in ("sensitivity", "specificity", "auroc")},
    }


def _format_estimate(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _print_heading(console: Console, title: str, subtitle: str) -> None:
    console.print(Text(_printable(title), style="bold"))
    if subtitle:
        console.print(Text(_printable(subtitle), style="dim"))


def _print_table(console: Console, heading: tuple[str, str], columns: Sequence[_Column], rows: Sequence[Row]) -> None:
    """Print a title, a subtitle, and the rows if any, with narrow gaps where wide ones do not fit."""
    _print_heading(console, *heading)
    if rows:
        wide = _table(columns, rows, gap=2)
        needed = console.measure(wide, options=console.options.update(width=10 * console.width)).maximum
        console.print(wide if needed <= console.width else _table(columns, rows, gap=1))
    console.print()


def _table(columns: Sequence[_Column], rows: Sequence[Row], gap: int) -> RichTable:
    table = RichTable(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for column in columns:
        justify: Any = "left" if column.decimals is None else "right"
        table.add_column(column.title, justify=justify, no_wrap=not column.is_wrapped, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(format_number(row[column.key], column.decimals))) for column in columns))
    return table


def format_number(value: Any, decimals: int | None) -> str:
    """Format a number with `decimals`, never as -0.00, other values (decimals=None) with str, and None as a dash."""
    if value is None:
        return "-"
    return str(value) if decimals is None else f"{value:z.{decimals}f}"


def _printable(text: str) -> str:
    """Replace control characters: names come from files and must not control the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def describe_metrics(about: Row) -> str:
    """Describe how the metrics of a table were computed."""
    steps = [name for name, is_on in about.get("postprocess", {}).items() if is_on]
    postprocessing = f", post-processed ({', '.join(steps)})" if steps else ""
    augmentation = ", test-time augmentation (flip)" if about.get("tta") == "flip" else ""
    threshold = about["threshold"] if isinstance(about["threshold"], str) else f"{about['threshold']:g}"
    reference = f", reference: {about['reference']}" if about.get("reference") else ""
    resolution = f"{about['aggregation']}, at {about['resolution']}{reference}"
    return f"{resolution}, threshold {threshold}{postprocessing}{augmentation}"


def format_counts(counts: dict[str, int]) -> str:
    """Format counts by status."""
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"


def join_names(names: Sequence[str]) -> str:
    """Join the names of datasets that belong together."""
    return " + ".join(names)
