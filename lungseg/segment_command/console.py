"""Show the segmented X-rays on the terminal, those to look at first at the top."""

import io
import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config.class_names import LUNG, ONE_CLASS, lung_parts
from lungseg.config.segment import SegmentFormat
from lungseg.errors import printable
from lungseg.inference.class_summary import describe_trained_on
from lungseg.inference.doubt import NO_UNUSUAL_PLACE, NOTHING_UNUSUAL
from lungseg.plurals import counted
from lungseg.predictions.class_columns import with_class_columns
from lungseg.predictions.ranking import questions
from lungseg.segment_command.outputs import files_of
from lungseg.segment_command.tables import TABLES, has_mask
from lungseg.standard_output import write_output

_MAX_ROWS, _MAX_LOST = 20, 10  # rows of the table, and lines about images without a mask
_MIN_WIDTH, _PIPE_WIDTH = 80, 140  # columns; a pipe has no width
_MAX_NAMED, _MAX_DOUBTFUL = 5, 3  # flagged and other files that the lines of those to look at first name
_OTHER_FLAGS = {
    "spacing_unusable": "no cm2: pixel size unusable",
    "body_part_unknown": "body part of the DICOM tags unknown",
    "body_part_several": "DICOM tags name several body parts",
    "view_unknown": "view of the DICOM tags unknown",
}
"""Short texts of the flags that question neither image nor mask; docs/reason-codes.md has their sentences."""
_UNFLAGGED = "highest doubt; no flag questions a mask"


def print_result(
    rows: Sequence[Row], out: str, formats: Sequence[SegmentFormat], classes: Sequence[str] = ONE_CLASS
) -> None:
    """Print a table, the images without a mask, and the closing lines. rows: as `by_doubt` sorts them.

    classes: of the model.
    """
    is_terminal = sys.stdout.isatty()
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=is_terminal,
        markup=False,
        highlight=False,
        emoji=False,
        width=max(_MIN_WIDTH, Console(file=sys.stdout).width) if is_terminal else _PIPE_WIDTH,
    )
    named = list(zip(short_names([row["source_uri"] for row in rows]), rows, strict=True))
    segmented = [(name, row) for name, row in named if has_mask(row)]
    lost = [(name, row) for name, row in named if not has_mask(row)]
    if segmented:
        console.print(_table(segmented[:_MAX_ROWS], classes))
        _print_more(console, len(segmented) - _MAX_ROWS, "image with less doubt", "images with less doubt")
        console.print()
    for name, row in lost[:_MAX_LOST]:
        subject = "" if name in row["message"] else f" of {name}"
        console.print(Text(printable(f"no mask{subject}: {row['message']}"), style="red"), soft_wrap=True)
    _print_more(console, len(lost) - _MAX_LOST, "image without a mask", "images without a mask")
    for line in closing_lines(named, out, formats, classes):
        console.print(Text(printable(line)), soft_wrap=True)
    write_output("\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n")


def closing_lines(
    named: Sequence[tuple[str, Row]], out: str, formats: Sequence[SegmentFormat], classes: Sequence[str] = ONE_CLASS
) -> list[str]:
    """Return what was segmented, the picture of a single image or the files to look at first, and where results are."""
    segmented = [(name, row) for name, row in named if has_mask(row)]
    lost, flagged = len(named) - len(segmented), sum(bool(questions(row)) for _, row in segmented)
    counts = [f"{len(segmented)} of {counted(len(named), 'image')} segmented"]
    counts += [f"{lost} without a mask"] if lost else []
    counts += [f"{flagged} flagged"] if flagged else []
    written = [
        f"{kind}/" for kind in formats if any(row[column] for _, row in segmented for column in files_of(kind, classes))
    ]
    pictures = [f"picture: {storage.join(out, row['overlay_file'])}" for _, row in named if row["overlay_file"]]
    looks = [*(pictures if len(named) == 1 else []), *_first_looks(segmented)]
    return [", ".join(counts), *looks, *_trained_on(segmented), f"written to {out}: {', '.join([*written, *TABLES])}"]


def _first_looks(segmented: Sequence[tuple[str, Row]]) -> list[str]:
    """Name the images to look at first: the flagged ones, then up to three of the others with the highest doubt."""
    flagged = [name for name, row in segmented if questions(row)]
    others = [name for name, row in segmented if not questions(row) and row["doubt"] is not None]
    lines = []
    if flagged:
        more = f" and {len(flagged) - _MAX_NAMED} more" if len(flagged) > _MAX_NAMED else ""
        lines.append(f"look first at: {', '.join(flagged[:_MAX_NAMED])}{more} (flagged)")
    if len(others) > 1:
        names = ", ".join(others[: min(_MAX_DOUBTFUL, len(others) // 2)])
        lines.append(f"then at: {names} (highest doubt)" if flagged else f"look first at: {names} ({_UNFLAGGED})")
    return lines


def _trained_on(segmented: Sequence[tuple[str, Row]]) -> list[str]:
    seen = sum(bool(row["seen_in_training"]) for _, row in segmented)
    return [describe_trained_on(seen, len(segmented))] if seen else []


def _print_more(console: Console, count: int, noun: str, plural: str) -> None:
    if count > 0:
        console.print(f"and {counted(count, f'more {noun}', f'more {plural}')}: see {TABLES[0]}")


def _table(named: Sequence[tuple[str, Row]], classes: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold", ratio=2)
    sides = ("right_lung", "left_lung") if lung_parts(classes) else ()
    others = [name for name in classes if name not in (LUNG, *sides)]
    for name in (*sides, *others):
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("doubt", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=3)
    for name, row in named:
        style = "yellow" if questions(row) else ""
        flat = with_class_columns(row, classes)
        areas = [_area(flat, kind) for kind in (*sides, *others)]
        doubt = "" if row["doubt"] is None else f"{row['doubt']:.3f}"
        cells = (name, *areas, doubt, _reason(row))
        table.add_row(*(Text(printable(cell)) for cell in cells), style=style)
    return table


def _reason(row: Row) -> str:
    """Return why to look at a row, and what was repaired; a row without lungs has no reason, so its flags are named."""
    reason = "" if row["doubt_reason"] in (NOTHING_UNUSUAL, NO_UNUSUAL_PLACE) else row["doubt_reason"]
    explained = questions(row) if reason else []
    others = [_OTHER_FLAGS.get(flag, flag) for flag in row["flags"] if flag not in explained]
    return "; ".join(filter(None, [reason, *others, row["message"]]))


def _area(flat: Row, kind: str) -> str:
    area = flat[f"{kind}_cm2"]
    return f"{area:.0f} cm2" if area is not None else f"{flat[f'{kind}_px']} px"


def short_names(labels: Sequence[str]) -> list[str]:
    """Return the last name of each path, and the folders above where it alone is not unique."""
    counts = Counter(map(storage.name_of, labels))
    start = storage.parent_of(_common(labels)) if len(labels) > 1 else ""
    return [
        storage.name_of(label) if counts[storage.name_of(label)] == 1 else label[len(start) :].lstrip("/")
        for label in labels
    ]


def _common(labels: Sequence[str]) -> str:
    """Return the longest common start of all paths, with its last name possibly cut."""
    low, high = min(labels), max(labels)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length] + "x"
