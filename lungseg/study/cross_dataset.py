"""Cross-dataset metrics with confidence intervals.

Pure functions of the rows of study.parquet (schema.STUDY_ROWS). Each image counts once in each figure: if several runs
of one group tested it (one per fold, on other datasets), it counts with its mean over them. Intervals are 95 %, from a
bootstrap over patients.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import NamedTuple, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg.arrays import Row
from lungseg.config import Protocol
from lungseg.metrics import bootstrap

METRICS = ("dice", "iou", "pixel_accuracy", "sensitivity", "precision", "hd95_px", "assd_px")
HELD_OUT_MARK = "*"
"""Mark of cells whose images are held-out patients of the training datasets."""
_MIN_WIDTH = 100  # columns: a terminal may wrap wider lines, but rich would cut figures to fit
_MIN_P = 1e-4  # smaller ones are printed as "p < 0.0001"
_UNKNOWN: Row = dict.fromkeys(("finding", "age_group", "sex"))
_STATISTICS = ("sd", "median", "p5", "low", "high")


class RunGroup(NamedTuple):
    """Runs that differ only in their fold. train_on: training datasets, joined by +."""

    protocol: str
    train_on: str

    @property
    def label(self) -> str:
        """Display name."""
        return f"{' + '.join(self.train_on.split('+'))} ({self.protocol})"


@dataclass(frozen=True)
class MatrixCell:
    """Results of a run group on one dataset.

    metrics: each over the images that define it, None if none does. undefined: number of images that do not, by metric.
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
        """The metric that the table shows."""
        return self.metrics["dice"]

    def as_json(self) -> Row:
        """Flatten: dice is the mean, dice_low and dice_high its interval; likewise for each metric."""
        means = {name: summary and summary.mean for name, summary in self.metrics.items()}
        statistics = {
            f"{name}_{statistic}": summary and getattr(summary, statistic)
            for name, summary in self.metrics.items()
            for statistic in _STATISTICS
        }
        return {
            **self.run_group._asdict(),
            "dataset": self.dataset,
            "role": self.role,
            "runs": self.runs,
            "images": self.images,
            "patients": self.dice.patients if self.dice else 0,
            **means,
            **statistics,
            "undefined": {name: count for name, count in self.undefined.items() if count},
        }


@dataclass(frozen=True)
class GeneralisationGap:
    """Mean Dice on held-out images of the training datasets minus mean Dice on another dataset."""

    run_group: RunGroup
    dataset: str
    gap: bootstrap.Gap

    def as_json(self) -> Row:
        """Flatten: gap is held_out - cross."""
        values = asdict(self.gap)
        own, other = values.pop("own"), values.pop("other")
        return {**self.run_group._asdict(), "dataset": self.dataset, "held_out": own, "cross": other, **values}

    def __str__(self) -> str:
        """Format as one line."""
        gap = _interval_text(self.gap.gap, self.gap.low, self.gap.high)
        return f"gap {gap} from {self.run_group.label} to {self.dataset}"


@dataclass(frozen=True)
class GroupComparison:
    """Paired Dice of two run groups on images of a dataset that neither was trained on."""

    dataset: str
    first: RunGroup
    second: RunGroup
    roles: tuple[str, str]
    paired: bootstrap.PairedDifference

    def as_json(self) -> Row:
        """Flatten: difference is first - second. p is not corrected for multiple comparisons."""
        sides = {
            side: {**run_group._asdict(), "role": role}
            for side, run_group, role in zip(("first", "second"), (self.first, self.second), self.roles, strict=True)
        }
        return {"dataset": self.dataset, **sides, **asdict(self.paired)}


@dataclass(frozen=True)
class CrossDatasetResults:
    """Results, generalisation gaps and paired comparisons of a study."""

    cells: tuple[MatrixCell, ...]
    gaps: tuple[GeneralisationGap, ...]
    comparisons: tuple[GroupComparison, ...]

    def as_json(self) -> Row:
        """Return the `results` of study.json."""
        return {name: [item.as_json() for item in getattr(self, name)] for name in ("cells", "gaps", "comparisons")}


_Images = dict[str, Row]
ImageResults = dict[tuple[RunGroup, str, str], _Images]


def format_difference(paired: bootstrap.PairedDifference) -> str:
    """Format the mean difference, its interval, and p."""
    is_tiny = paired.p is not None and paired.p < _MIN_P
    p = "" if paired.p is None else f", p < {_MIN_P:.4f}" if is_tiny else f", p = {paired.p:.4f}"
    return f"difference {_interval_text(paired.difference, paired.low, paired.high, 4)}{p}"


def study_rows(
    tested: Iterable[Row],
    protocol: str,
    train_on: Sequence[str],
    fold: int,
    seed: int = 0,
    subgroups: Mapping[tuple[str, str], Row] | None = None,
) -> list[Row]:
    """Convert the rows of a run's tested.parquet to rows of study.parquet.

    subgroups: finding, age_group and sex by (dataset, image_id), where known.
    """
    plan, known = {"protocol": protocol, "train_on": "+".join(train_on), "fold": fold, "seed": seed}, subgroups or {}
    return [{**row, **plan, **_UNKNOWN, **known.get((row["dataset"], row["image_id"]), _UNKNOWN)} for row in tested]


def summarise(rows: Iterable[Row]) -> CrossDatasetResults:
    """Summarise the rows of a study."""
    all_rows = list(rows)
    tested = mean_per_image(all_rows)
    return CrossDatasetResults(_cells(all_rows, tested), _gaps(tested), _comparisons(tested))


def dice_table(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the cells as text: a header, then a row per run group with a column per dataset."""
    groups = list(dict.fromkeys(cell.run_group for cell in results.cells))
    datasets = sorted({cell.dataset for cell in results.cells})
    texts = {(cell.run_group, cell.dataset): _cell_text(cell) for cell in results.cells}
    rows = [[group.label, *(texts.get((group, dataset), "-") for dataset in datasets)] for group in groups]
    return ["trained on", *datasets], rows


def print_results(results: CrossDatasetResults, console: Console | None = None) -> None:
    """Print the table and the gaps on standard output."""
    if not results.cells:
        return
    if console is None:
        console = Console(markup=False, highlight=False, emoji=False, width=max(_MIN_WIDTH, Console().width))
    console.print(Text("Dice by test dataset", style="bold"))
    console.print(
        Text(f"mean over images, 95 % interval over patients, at native size; {HELD_OUT_MARK} held-out patients")
    )
    matrix = _text_table(*dice_table(results))
    needed = console.measure(matrix, options=console.options.update(width=10 * console.width)).maximum
    console.print(matrix if needed <= console.width else _text_table(*_dice_list(results)))
    for gap in results.gaps:
        console.print(Text(str(gap)))
    console.print()


def _dice_list(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the cells as text, one row each: fits where many or long dataset names do not fit in columns."""
    rows = [[cell.run_group.label, cell.dataset, _cell_text(cell)] for cell in results.cells]
    return ["trained on", "tested on", "Dice"], rows


def _text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=name != header[0], overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style="bold" if text.endswith(HELD_OUT_MARK) else "") for text in row))
    return table


def mean_per_image(rows: Sequence[Row]) -> ImageResults:
    """Group rows by run group, role and dataset; merge the rows of each image id into their means over the runs."""
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
        for key, images in sorted(groups.items(), key=lambda item: _sort_key(*item[0]))
    }


def patient_key(row: Row) -> str:
    """Return the patient of an image: its audit group if any, else its patient id, else its own image id."""
    return row.get("group") or f"{row['dataset']}/{row['patient_id'] or row['image_id']}"


def mean_defined(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values; None if there is none."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _sort_key(run_group: RunGroup, role: str, dataset: str) -> tuple[int, str, bool, str]:
    """Sort protocols in the order of the settings, and held-out before cross."""
    return get_args(Protocol).index(run_group.protocol), run_group.train_on, role != "held-out", dataset


def _cells(rows: Sequence[Row], tested: ImageResults) -> tuple[MatrixCell, ...]:
    runs: dict[RunGroup, set[str]] = defaultdict(set)
    for row in rows:
        runs[RunGroup(row["protocol"], row["train_on"])].add(row["run"])
    cells = []
    for (run_group, role, dataset), images in tested.items():
        metrics = {name: _summarise(images, name) for name in METRICS}
        undefined = {name: sum(row[name] is None for row in images.values()) for name in METRICS}
        cells.append(MatrixCell(run_group, dataset, role, len(runs[run_group]), len(images), metrics, undefined))
    return tuple(cells)


def _gaps(tested: ImageResults) -> tuple[GeneralisationGap, ...]:
    """Compare the held-out images of each run group with each dataset that it was not trained on."""
    own: dict[RunGroup, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    for (run_group, role, _), images in tested.items():
        if role == "held-out":
            values, patients = _defined(images)
            own[run_group][0].extend(values)
            own[run_group][1].extend(patients)
    gaps = []
    for (run_group, role, dataset), images in tested.items():
        other = _defined(images)
        if role == "cross" and other[0] and own[run_group][0]:
            gaps.append(GeneralisationGap(run_group, dataset, bootstrap.gap(*own[run_group], *other)))
    return tuple(gaps)


def _comparisons(tested: ImageResults) -> tuple[GroupComparison, ...]:
    comparisons = []
    for ((first, role, dataset), left), ((second, other_role, other), right) in combinations(tested.items(), 2):
        if first == second or dataset != other:
            continue
        shared = [name for name in left if name in right and None not in (left[name]["dice"], right[name]["dice"])]
        if shared:
            left_dice, right_dice = [[side[name]["dice"] for name in shared] for side in (left, right)]
            paired = bootstrap.compare(left_dice, right_dice, [left[name]["patient"] for name in shared])
            comparisons.append(GroupComparison(dataset, first, second, (role, other_role), paired))
    return tuple(comparisons)


def _summarise(images: _Images, metric: str) -> bootstrap.Summary | None:
    values, patients = _defined(images, metric)
    return bootstrap.summarise(values, patients) if values else None


def _defined(images: _Images, metric: str = "dice") -> tuple[list[float], list[str]]:
    """Return the values and the patients of the images that define a metric."""
    rows = [row for row in images.values() if row[metric] is not None]
    return [row[metric] for row in rows], [row["patient"] for row in rows]


def _cell_text(cell: MatrixCell) -> str:
    if cell.dice is None:
        return "-"
    mark = HELD_OUT_MARK if cell.role == "held-out" else ""
    return f"{_interval_text(cell.dice.mean, cell.dice.low, cell.dice.high)}{mark}"


def _interval_text(mean: float, low: float | None, high: float | None, decimals: int = 3) -> str:
    text = f"{mean:.{decimals}f}"
    return text if low is None or high is None else f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"
