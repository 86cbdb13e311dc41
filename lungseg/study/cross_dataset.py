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

METRICS = ("dice", "iou", "pixel_accuracy", "sensitivity", "precision", "hd95_px", "assd_px")
HELD_OUT_MARK = "*"
"""Mark of a cell whose images are of other patients of the data sets that were trained on."""
_WIDTH = 100  # columns, at least: a line that wraps can be read, a figure that is cut cannot
_LEAST_P = 1e-4  # that is told apart in words
_SPREAD = ("sd", "median", "p5", "low", "high")


class RunGroup(NamedTuple):
    """Runs that differ in their fold alone; train_on: data sets, joined by +."""

    protocol: str
    train_on: str

    @property
    def label(self) -> str:
        """Readable name."""
        return f"{' + '.join(self.train_on.split('+'))} ({self.protocol})"


@dataclass(frozen=True)
class MatrixCell:
    """Runs of one kind on one data set.

    metrics: each over the images that it is defined for, None where it is for none; undefined: on how many it is not.
    """

    run_group: RunGroup
    dataset: str
    role: str
    runs: int
    images: int
    metrics: dict[str, bootstrap.Summary | None]
    undefined: dict[str, int]

    @property
    def dice(self) -> bootstrap.Summary | None:
        """The measure that the matrix shows."""
        return self.metrics["dice"]

    def as_json(self) -> Row:
        """Flatten it: dice is the mean, dice_low and dice_high its interval, and so for each measure."""
        figures = {name: found and found.mean for name, found in self.metrics.items()}
        spread = {
            f"{name}_{part}": found and getattr(found, part) for name, found in self.metrics.items() for part in _SPREAD
        }
        return {
            **self.run_group._asdict(),
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
class GeneralisationGap:
    """What Dice loses from held-out images of the data sets that were trained on to those of another one."""

    run_group: RunGroup
    dataset: str
    gap: bootstrap.Gap

    def as_json(self) -> Row:
        """Flatten it: gap is held_out - cross."""
        found = asdict(self.gap)
        own, other = found.pop("own"), found.pop("other")
        return {**self.run_group._asdict(), "dataset": self.dataset, "held_out": own, "cross": other, **found}

    def __str__(self) -> str:
        """Say it in a line."""
        gap = _interval(self.gap.gap, self.gap.low, self.gap.high)
        return f"gap {gap} from {self.run_group.label} to {self.dataset}"


@dataclass(frozen=True)
class GroupComparison:
    """Dice of two kinds of runs on the same images of a data set, none of which either was trained on."""

    dataset: str
    first: RunGroup
    second: RunGroup
    roles: tuple[str, str]
    paired: bootstrap.PairedDifference

    def as_json(self) -> Row:
        """Flatten it: difference is first - second; p is not corrected for the number of comparisons."""
        sides = {
            side: {**trained._asdict(), "role": role}
            for side, trained, role in zip(("first", "second"), (self.first, self.second), self.roles, strict=True)
        }
        return {"dataset": self.dataset, **sides, **asdict(self.paired)}


@dataclass(frozen=True)
class CrossDatasetResults:
    """All of it."""

    cells: tuple[MatrixCell, ...]
    gaps: tuple[GeneralisationGap, ...]
    comparisons: tuple[GroupComparison, ...]

    def as_json(self) -> Row:
        """Make it what study.json holds."""
        return {name: [one.as_json() for one in getattr(self, name)] for name in ("cells", "gaps", "comparisons")}


_Images = dict[str, Row]
ImageResults = dict[tuple[RunGroup, str, str], _Images]


def format_difference(paired: bootstrap.PairedDifference) -> str:
    """Say how two differ: the mean difference, its interval, and p."""
    low = paired.p is not None and paired.p < _LEAST_P
    p = "" if paired.p is None else f", p < {_LEAST_P:.4f}" if low else f", p = {paired.p:.4f}"
    return f"difference {_interval(paired.difference, paired.low, paired.high, 4)}{p}"


def study_rows(tested: Iterable[Row], protocol: str, train_on: Sequence[str], fold: int) -> list[Row]:
    """Make rows of study.parquet of a run's tested.parquet."""
    return [{**row, "protocol": protocol, "train_on": "+".join(train_on), "fold": fold} for row in tested]


def summarise(rows: Iterable[Row]) -> CrossDatasetResults:
    """Bring a study's rows to its matrix, gaps and comparisons."""
    every = list(rows)
    tested = mean_per_image(every)
    return CrossDatasetResults(_cells(every, tested), _gaps(tested), _comparisons(tested))


def dice_table(matrix: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Lay the cells out as words: the head, then a row for each kind of runs, a column for each data set."""
    trained = list(dict.fromkeys(cell.run_group for cell in matrix.cells))
    names = sorted({cell.dataset for cell in matrix.cells})
    at = {(cell.run_group, cell.dataset): _shown(cell) for cell in matrix.cells}
    return ["trained on", *names], [[one.label, *(at.get((one, name), "-") for name in names)] for one in trained]


def print_results(matrix: CrossDatasetResults, console: Console | None = None) -> None:
    """Print the matrix and the gaps on standard output."""
    if not matrix.cells:
        return
    if console is None:
        console = Console(markup=False, highlight=False, emoji=False, width=max(_WIDTH, Console().width))
    head, rows = dice_table(matrix)
    console.print(Text("Dice by data set tested on", style="bold"))
    console.print(
        Text(f"mean over images, 95 % interval over patients, at native size; {HELD_OUT_MARK} held-out patients")
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(word, style="bold" if word.endswith(HELD_OUT_MARK) else "") for word in row))
    console.print(table)
    for one in matrix.gaps:
        console.print(Text(str(one)))
    console.print()


def mean_per_image(rows: Sequence[Row]) -> ImageResults:
    """Group by kind of runs, role and data set: of each image, by its id, a row with the means over its runs."""
    groups: dict[tuple[RunGroup, str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[RunGroup(row["protocol"], row["train_on"]), row["role"], row["dataset"]][row["image_id"]].append(row)
    return {
        key: {
            image: {
                "patient": patient_key(same[0]),
                **{name: mean_defined(row[name] for row in same) for name in METRICS},
            }
            for image, same in sorted(images.items())
        }
        for key, images in sorted(groups.items(), key=lambda pair: _order(*pair[0]))
    }


def _order(trained: RunGroup, role: str, dataset: str) -> tuple[int, str, bool, str]:
    """Sort protocols as the settings name them, and held-out ones first."""
    return get_args(Protocol).index(trained.protocol), trained.train_on, role != "held-out", dataset


def _cells(rows: Sequence[Row], tested: ImageResults) -> tuple[MatrixCell, ...]:
    runs: dict[RunGroup, set[str]] = defaultdict(set)
    for row in rows:
        runs[RunGroup(row["protocol"], row["train_on"])].add(row["run"])
    cells = []
    for (trained, role, dataset), images in tested.items():
        metrics = {name: _summarise(images, name) for name in METRICS}
        undefined = {name: sum(row[name] is None for row in images.values()) for name in METRICS}
        cells.append(MatrixCell(trained, dataset, role, len(runs[trained]), len(images), metrics, undefined))
    return tuple(cells)


def _gaps(tested: ImageResults) -> tuple[GeneralisationGap, ...]:
    """Compare each kind's held-out images with those of each data set that it was not trained on."""
    own: dict[RunGroup, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    for (trained, role, _), images in tested.items():
        if role == "held-out":
            values, patients = _defined(images)
            own[trained][0].extend(values)
            own[trained][1].extend(patients)
    gaps = []
    for (trained, role, dataset), images in tested.items():
        other = _defined(images)
        if role == "cross" and other[0] and own[trained][0]:
            gaps.append(GeneralisationGap(trained, dataset, bootstrap.gap(*own[trained], *other)))
    return tuple(gaps)


def _comparisons(tested: ImageResults) -> tuple[GroupComparison, ...]:
    found = []
    for ((first, role, dataset), left), ((second, other_role, other), right) in combinations(tested.items(), 2):
        if first == second or dataset != other:
            continue
        both = [one for one in left if one in right and None not in (left[one]["dice"], right[one]["dice"])]
        if both:
            former, latter = [[side[one]["dice"] for one in both] for side in (left, right)]
            paired = bootstrap.compare(former, latter, [left[one]["patient"] for one in both])
            found.append(GroupComparison(dataset, first, second, (role, other_role), paired))
    return tuple(found)


def _summarise(images: _Images, measure: str) -> bootstrap.Summary | None:
    values, patients = _defined(images, measure)
    return bootstrap.summarise(values, patients) if values else None


def _defined(images: _Images, measure: str = "dice") -> tuple[list[float], list[str]]:
    """A measure of each image that has it, and whose image it is."""
    rows = [row for row in images.values() if row[measure] is not None]
    return [row[measure] for row in rows], [row["patient"] for row in rows]


def patient_key(row: Row) -> str:
    """Name whose image it is: its group, as the audit may know more than ids; one of no known patient is its own."""
    return row.get("group") or f"{row['dataset']}/{row['patient_id'] or row['image_id']}"


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


def _shown(cell: MatrixCell) -> str:
    if cell.dice is None:
        return "-"
    mark = HELD_OUT_MARK if cell.role == "held-out" else ""
    return f"{_interval(cell.dice.mean, cell.dice.low, cell.dice.high)}{mark}"


def _interval(mean: float, low: float | None, high: float | None, decimals: int = 3) -> str:
    said = f"{mean:.{decimals}f}"
    return said if low is None or high is None else f"{said} [{low:.{decimals}f}, {high:.{decimals}f}]"
