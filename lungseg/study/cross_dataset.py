"""What a study came to: who was trained on whom, tested where, how well, how sure, and how they differ.

Pure functions of study.parquet's rows (schema.STUDY_ROWS). In each figure an image counts once: where several runs of
one kind were tested on it (one a fold, on other data sets), it counts with its mean over them. Intervals are 95 %, by a
bootstrap over patients.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg.config import Protocol
from lungseg.metrics import bootstrap

Row = dict[str, Any]

MEASURES = ("dice", "iou", "pixel_accuracy", "sensitivity", "precision", "hd95_px", "assd_px")
HELD_OUT = "*"
"""Mark of a cell whose images are of other patients of the data sets that were trained on."""
_WIDTH = 100  # columns, at least: a line that wraps can be read, a figure that is cut cannot
_LEAST_P = 1e-4  # that is told apart in words
_SPREAD = ("sd", "median", "p5", "low", "high")


class Trained(NamedTuple):
    """Runs that differ in their fold alone; train_on: data sets, joined by +."""

    protocol: str
    train_on: str

    @property
    def label(self) -> str:
        """Readable name."""
        return f"{' + '.join(self.train_on.split('+'))} ({self.protocol})"


@dataclass(frozen=True)
class Cell:
    """Runs of one kind on one data set.

    measures: each over the images that it is defined for, None where it is for none; undefined: on how many it is not.
    """

    trained: Trained
    dataset: str
    role: str
    runs: int
    images: int
    measures: dict[str, bootstrap.Summary | None]
    undefined: dict[str, int]

    @property
    def dice(self) -> bootstrap.Summary | None:
        """The measure that the matrix shows."""
        return self.measures["dice"]

    def as_json(self) -> Row:
        """Flatten it: dice is the mean, dice_low and dice_high its interval, and so for each measure."""
        figures = {name: found and found.mean for name, found in self.measures.items()}
        spread = {
            f"{name}_{part}": found and getattr(found, part)
            for name, found in self.measures.items()
            for part in _SPREAD
        }
        return {
            **self.trained._asdict(),
            "dataset": self.dataset,
            "role": self.role,
            "runs": self.runs,
            "images": self.images,
            "patients": self.dice.patients if self.dice else 0,
            **figures,
            **spread,
            "undefined": {name: count for name, count in self.undefined.items() if count},
        }


@dataclass(frozen=True)
class Drop:
    """What Dice loses from held-out images of the data sets that were trained on to those of another one."""

    trained: Trained
    dataset: str
    gap: bootstrap.Gap

    def as_json(self) -> Row:
        """Flatten it: gap is held_out - cross."""
        found = asdict(self.gap)
        own, other = found.pop("own"), found.pop("other")
        return {**self.trained._asdict(), "dataset": self.dataset, "held_out": own, "cross": other, **found}

    def __str__(self) -> str:
        """Say it in a line."""
        gap = _interval(self.gap.gap, self.gap.low, self.gap.high)
        return f"gap {gap} from {self.trained.label} to {self.dataset}"


@dataclass(frozen=True)
class Comparison:
    """Dice of two kinds of runs on the same images of a data set, none of which either was trained on."""

    dataset: str
    first: Trained
    second: Trained
    roles: tuple[str, str]
    paired: bootstrap.Paired

    def as_json(self) -> Row:
        """Flatten it: difference is first - second; p is not corrected for the number of comparisons."""
        sides = {
            side: {**trained._asdict(), "role": role}
            for side, trained, role in zip(("first", "second"), (self.first, self.second), self.roles, strict=True)
        }
        return {"dataset": self.dataset, **sides, **asdict(self.paired)}


@dataclass(frozen=True)
class Matrix:
    """All of it."""

    cells: tuple[Cell, ...]
    gaps: tuple[Drop, ...]
    comparisons: tuple[Comparison, ...]

    def as_json(self) -> Row:
        """Make it what study.json holds."""
        return {name: [one.as_json() for one in getattr(self, name)] for name in ("cells", "gaps", "comparisons")}


_Images = dict[str, Row]
Tested = dict[tuple[Trained, str, str], _Images]


def differ(paired: bootstrap.Paired) -> str:
    """Say how two differ: the mean difference, its interval, and p."""
    low = paired.p is not None and paired.p < _LEAST_P
    p = "" if paired.p is None else f", p < {_LEAST_P:.4f}" if low else f", p = {paired.p:.4f}"
    return f"difference {_interval(paired.difference, paired.low, paired.high, 4)}{p}"


def study_rows(tested: Iterable[Row], protocol: str, train_on: Sequence[str], fold: int) -> list[Row]:
    """Make rows of study.parquet of a run's tested.parquet."""
    return [{**row, "protocol": protocol, "train_on": "+".join(train_on), "fold": fold} for row in tested]


def summarise(rows: Iterable[Row]) -> Matrix:
    """Bring a study's rows to its matrix, gaps and comparisons."""
    every = list(rows)
    tested = each_once(every)
    return Matrix(_cells(every, tested), _gaps(tested), _comparisons(tested))


def grid(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """Lay the cells out as words: the head, then a row for each kind of runs, a column for each data set."""
    trained = list(dict.fromkeys(cell.trained for cell in matrix.cells))
    names = sorted({cell.dataset for cell in matrix.cells})
    at = {(cell.trained, cell.dataset): _shown(cell) for cell in matrix.cells}
    return ["trained on", *names], [[one.label, *(at.get((one, name), "-") for name in names)] for one in trained]


def show(matrix: Matrix, console: Console | None = None) -> None:
    """Print the matrix and the gaps on standard output."""
    if not matrix.cells:
        return
    if console is None:
        console = Console(markup=False, highlight=False, emoji=False, width=max(_WIDTH, Console().width))
    head, rows = grid(matrix)
    console.print(Text("Dice by data set tested on", style="bold"))
    console.print(Text(f"mean over images, 95 % interval over patients, at native size; {HELD_OUT} held-out patients"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(word, style="bold" if word.endswith(HELD_OUT) else "") for word in row))
    console.print(table)
    for one in matrix.gaps:
        console.print(Text(str(one)))
    console.print()


def each_once(rows: Sequence[Row]) -> Tested:
    """Group by kind of runs, role and data set: of each image, by its id, a row with the means over its runs."""
    groups: dict[tuple[Trained, str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[Trained(row["protocol"], row["train_on"]), row["role"], row["dataset"]][row["image_id"]].append(row)
    return {
        key: {
            image: {"patient": patient_of(same[0]), **{name: mean_of(row[name] for row in same) for name in MEASURES}}
            for image, same in sorted(images.items())
        }
        for key, images in sorted(groups.items(), key=lambda pair: _order(*pair[0]))
    }


def _order(trained: Trained, role: str, dataset: str) -> tuple[int, str, bool, str]:
    """Sort protocols as the settings name them, and held-out ones first."""
    return get_args(Protocol).index(trained.protocol), trained.train_on, role != "held-out", dataset


def _cells(rows: Sequence[Row], tested: Tested) -> tuple[Cell, ...]:
    runs: dict[Trained, set[str]] = defaultdict(set)
    for row in rows:
        runs[Trained(row["protocol"], row["train_on"])].add(row["run"])
    cells = []
    for (trained, role, dataset), images in tested.items():
        measures = {name: _summarise(images, name) for name in MEASURES}
        undefined = {name: sum(row[name] is None for row in images.values()) for name in MEASURES}
        cells.append(Cell(trained, dataset, role, len(runs[trained]), len(images), measures, undefined))
    return tuple(cells)


def _gaps(tested: Tested) -> tuple[Drop, ...]:
    """Compare each kind's held-out images with those of each data set that it was not trained on."""
    own: dict[Trained, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    for (trained, role, _), images in tested.items():
        if role == "held-out":
            values, patients = _defined(images)
            own[trained][0].extend(values)
            own[trained][1].extend(patients)
    gaps = []
    for (trained, role, dataset), images in tested.items():
        other = _defined(images)
        if role == "cross" and other[0] and own[trained][0]:
            gaps.append(Drop(trained, dataset, bootstrap.gap(*own[trained], *other)))
    return tuple(gaps)


def _comparisons(tested: Tested) -> tuple[Comparison, ...]:
    found = []
    for ((first, role, dataset), left), ((second, other_role, other), right) in combinations(tested.items(), 2):
        if first == second or dataset != other:
            continue
        both = [one for one in left if one in right and None not in (left[one]["dice"], right[one]["dice"])]
        if both:
            former, latter = [[side[one]["dice"] for one in both] for side in (left, right)]
            paired = bootstrap.compare(former, latter, [left[one]["patient"] for one in both])
            found.append(Comparison(dataset, first, second, (role, other_role), paired))
    return tuple(found)


def _summarise(images: _Images, measure: str) -> bootstrap.Summary | None:
    values, patients = _defined(images, measure)
    return bootstrap.summarise(values, patients) if values else None


def _defined(images: _Images, measure: str = "dice") -> tuple[list[float], list[str]]:
    """A measure of each image that has it, and whose image it is."""
    rows = [row for row in images.values() if row[measure] is not None]
    return [row[measure] for row in rows], [row["patient"] for row in rows]


def patient_of(row: Row) -> str:
    """Name whose image it is: its group, as the audit may know more than ids; one of no known patient is its own."""
    return row.get("group") or f"{row['dataset']}/{row['patient_id'] or row['image_id']}"


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _shown(cell: Cell) -> str:
    if cell.dice is None:
        return "-"
    mark = HELD_OUT if cell.role == "held-out" else ""
    return f"{_interval(cell.dice.mean, cell.dice.low, cell.dice.high)}{mark}"


def _interval(mean: float, low: float | None, high: float | None, decimals: int = 3) -> str:
    said = f"{mean:.{decimals}f}"
    return said if low is None or high is None else f"{said} [{low:.{decimals}f}, {high:.{decimals}f}]"
