"""Cross-dataset metrics with confidence intervals.

Pure functions of the rows of study.parquet (result_columns.STUDY_ROWS). Intervals are 95 %, from a bootstrap over
patients, and over trainings too where every fold was trained with several seeds (`metrics.bootstrap`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

from lungseg.arrays import Row
from lungseg.metrics import bootstrap, training_noise
from lungseg.metrics.paired_tests import holm
from lungseg.metrics.training_noise import SeedSpread
from lungseg.study.subgroups import Subgroup, find_subgroups
from lungseg.study.tested_images import (
    METRICS,
    ImageResults,
    Images,
    RunGroup,
    TestedDataset,
    by_class,
    class_json,
    defined,
    mean_per_image,
    seed_means,
    summarise_images,
    tested_datasets,
    training_effects,
)

COMPARED = ("dice", "iou", "hd95_px")
"""Metrics of comparisons; the first is the main one."""
_STATISTICS = ("sd", "median", "p5", "low", "high", "basis")


@dataclass(frozen=True)
class MatrixCell:
    """Results of a run group on one dataset.

    metrics: each over the images that define it, None if none does. undefined: number of images that do not, by metric.
    spread: of the means that single seeds give, by metric; None for one seed. class_name: "" in a study of one class.
    """

    run_group: RunGroup
    dataset: str
    role: str
    runs: int
    images: int
    metrics: dict[str, bootstrap.Summary | None]
    undefined: dict[str, int]
    spread: dict[str, SeedSpread | None]
    class_name: str = ""

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
        spreads = [spread_json(spread, f"{name}_") for name, spread in self.spread.items()]
        return {
            **self.run_group._asdict(),
            **class_json(self.class_name),
            "dataset": self.dataset,
            "role": self.role,
            "runs": self.runs,
            "images": self.images,
            "patients": self.dice.patients if self.dice else 0,
            **means,
            **statistics,
            **{name: value for spread in spreads for name, value in spread.items()},
            "undefined": {name: count for name, count in self.undefined.items() if count},
        }


@dataclass(frozen=True)
class GeneralisationGap:
    """Mean Dice on held-out images of the training datasets minus mean Dice on another dataset."""

    run_group: RunGroup
    dataset: str
    gap: bootstrap.Gap
    spread: SeedSpread | None = None
    class_name: str = ""

    def as_json(self) -> Row:
        """Flatten: gap is held_out - cross."""
        values = asdict(self.gap)
        own, other = values.pop("own"), values.pop("other")
        plan = {**self.run_group._asdict(), **class_json(self.class_name), "dataset": self.dataset}
        return {**plan, "held_out": own, "cross": other, **values, **spread_json(self.spread, "gap_")}


@dataclass(frozen=True)
class GroupComparison:
    """Paired metrics of two run groups on images of a dataset that neither was trained on.

    metrics: first - second, for each of COMPARED that images of both define. spreads: of the mean Dice of each side.
    """

    dataset: str
    first: RunGroup
    second: RunGroup
    roles: tuple[str, str]
    metrics: Mapping[str, bootstrap.PairedDifference]
    spreads: tuple[SeedSpread | None, SeedSpread | None] = (None, None)
    class_name: str = ""

    @property
    def paired(self) -> bootstrap.PairedDifference:
        """The main metric, Dice."""
        return self.metrics["dice"]

    def as_json(self) -> Row:
        """Flatten: difference, low, high, p and so on of the Dice; iou_difference and so on of the others."""
        sides = {
            side: {**run_group._asdict(), "role": role, **spread_json(spread, "dice_")}
            for side, run_group, role, spread in zip(
                ("first", "second"), (self.first, self.second), self.roles, self.spreads, strict=True
            )
        }
        return {"dataset": self.dataset, **class_json(self.class_name), **sides, **differences_json(self.metrics)}


@dataclass(frozen=True)
class CrossDatasetResults:
    """Results, generalisation gaps and paired comparisons of a study, subgroups, and the size of each dataset."""

    cells: tuple[MatrixCell, ...]
    gaps: tuple[GeneralisationGap, ...]
    comparisons: tuple[GroupComparison, ...]
    datasets: tuple[TestedDataset, ...]
    subgroups: tuple[Subgroup, ...] = ()

    def as_json(self) -> Row:
        """Return the `results` of study.json."""
        names = ("cells", "gaps", "comparisons", "subgroups")
        return {
            **{name: [item.as_json() for item in getattr(self, name)] for name in names},
            "datasets": [asdict(dataset) for dataset in self.datasets],
        }


def spread_json(spread: SeedSpread | None, prefix: str) -> Row:
    """Flatten a spread over seeds; nothing for one seed."""
    if spread is None:
        return {}
    names = {"seeds": "seeds", "min": "seed_min", "max": "seed_max", "sd": "seed_sd"}
    return {f"{prefix}{names[name]}": value for name, value in asdict(spread).items()}


def differences_json(metrics: Mapping[str, bootstrap.PairedDifference]) -> Row:
    """Flatten differences: those of the Dice without a prefix."""
    prefixes = {name: "" if name == COMPARED[0] else f"{name}_" for name in metrics}
    return {
        f"{prefixes[name]}{key}": value for name, paired in metrics.items() for key, value in asdict(paired).items()
    }


def summarise(rows: Iterable[Row]) -> CrossDatasetResults:
    """Summarise the rows of a study, each class on its own; p is corrected over the comparisons of all classes."""
    all_rows = list(rows)
    cells: list[MatrixCell] = []
    gaps: list[GeneralisationGap] = []
    comparisons: list[GroupComparison] = []
    subgroups: list[Subgroup] = []
    for class_name, own in by_class(all_rows).items():
        tested = mean_per_image(own)
        cells += [replace(cell, class_name=class_name) for cell in _cells(own, tested)]
        gaps += [replace(gap, class_name=class_name) for gap in _gaps(tested)]
        comparisons += [replace(comparison, class_name=class_name) for comparison in _comparisons(tested)]
        subgroups += find_subgroups(tested, class_name)
    datasets = tested_datasets(all_rows)
    return CrossDatasetResults(tuple(cells), tuple(gaps), _holm_corrected(comparisons), datasets, tuple(subgroups))


def _cells(rows: Sequence[Row], tested: ImageResults) -> tuple[MatrixCell, ...]:
    runs: dict[RunGroup, set[str]] = defaultdict(set)
    for row in rows:
        runs[RunGroup(row["protocol"], row["train_on"])].add(row["run"])
    cells = []
    for (run_group, role, dataset), images in tested.items():
        metrics = {name: summarise_images(images.values(), name) for name in METRICS}
        undefined = {name: sum(row[name] is None for row in images.values()) for name in METRICS}
        spread = {name: _spread(images.values(), name) for name in METRICS}
        count = len(runs[run_group])
        cells.append(MatrixCell(run_group, dataset, role, count, len(images), metrics, undefined, spread))
    return tuple(cells)


def _spread(images: Iterable[Row], metric: str) -> SeedSpread | None:
    return training_noise.seed_spread(list(seed_means(images, metric).values()))


def held_out_images(tested: ImageResults, run_group: RunGroup) -> Images:
    """Return the held-out images of a run group, of all its training datasets, by dataset and image id."""
    return {
        f"{dataset}/{name}": image
        for (group, role, dataset), images in tested.items()
        if group == run_group and role == "held-out"
        for name, image in images.items()
        if image["dice"] is not None
    }


def _gaps(tested: ImageResults) -> tuple[GeneralisationGap, ...]:
    """Compare the held-out images of each run group with each dataset that it was not trained on."""
    gaps = []
    for (run_group, role, dataset), images in tested.items():
        own = [*held_out_images(tested, run_group).values()] if role == "cross" else []
        other = [image for image in images.values() if image["dice"] is not None]
        if own and other:
            effects = gap_effects(own, other)
            gap = bootstrap.gap(*defined(own, "dice"), *defined(other, "dice"), effects)
            gaps.append(GeneralisationGap(run_group, dataset, gap, gap_spread(own, other)))
    return tuple(gaps)


def gap_effects(own: Sequence[Row], other: Sequence[Row]) -> list[training_noise.FoldEffects]:
    """Return the effects of the trainings on the difference of the mean Dice of own and other images."""
    return training_noise.subtract(training_effects(own, "dice"), training_effects(other, "dice"))


def gap_spread(own: Sequence[Row], other: Sequence[Row]) -> SeedSpread | None:
    """Return the spread of the gaps that single seeds give."""
    left, right = seed_means(own, "dice"), seed_means(other, "dice")
    return training_noise.seed_spread([left[seed] - right[seed] for seed in left if seed in right])


def _comparisons(tested: ImageResults) -> list[GroupComparison]:
    comparisons = []
    for ((first, role, dataset), left), ((second, other_role, other), right) in combinations(tested.items(), 2):
        if first == second or dataset != other:
            continue
        metrics, spreads = compare_images(left, right)
        if "dice" in metrics:
            comparisons.append(GroupComparison(dataset, first, second, (role, other_role), metrics, spreads))
    return comparisons


def _holm_corrected(comparisons: Sequence[GroupComparison]) -> tuple[GroupComparison, ...]:
    corrected = holm_corrected([comparison.metrics for comparison in comparisons])
    return tuple(replace(item, metrics=metrics) for item, metrics in zip(comparisons, corrected, strict=True))


def compare_images(
    left: Images, right: Images
) -> tuple[dict[str, bootstrap.PairedDifference], tuple[SeedSpread | None, SeedSpread | None]]:
    """Compare each of COMPARED on the images of both sides that define it; also return the spread of each mean Dice."""
    metrics = {}
    for metric in COMPARED:
        shared = shared_images(left, right, metric)
        if shared:
            first, second = ([side[name] for name in shared] for side in (left, right))
            values, patients = defined(first, metric)
            effects = both_effects(first, second, metric)
            metrics[metric] = bootstrap.compare(values, defined(second, metric)[0], patients, effects)
    shared = shared_images(left, right, "dice")
    own, other = (_spread([side[name] for name in shared], "dice") for side in (left, right))
    return metrics, (own, other)


def shared_images(left: Images, right: Images, metric: str) -> list[str]:
    """Return the images for which both sides define a metric."""
    return [name for name in left if name in right and None not in (left[name][metric], right[name][metric])]


def both_effects(first: Sequence[Row], second: Sequence[Row], metric: str) -> list[training_noise.FoldEffects]:
    """Return the effects of the trainings of both sides; nothing where a side has a fold with one training."""
    sides = [list(training_effects(side, metric).values()) for side in (first, second)]
    return [*sides[0], *sides[1]] if all(map(training_noise.all_repeated, sides)) else []


def holm_corrected(
    rows: Sequence[Mapping[str, bootstrap.PairedDifference]],
) -> list[dict[str, bootstrap.PairedDifference]]:
    """Set p_holm of each metric, corrected over the rows of a table."""
    corrected: list[dict[str, bootstrap.PairedDifference]] = [dict(row) for row in rows]
    for metric in {metric for row in rows for metric in row}:
        having = [row for row in corrected if metric in row]
        for row, p in zip(having, holm([row[metric].p for row in having]), strict=True):
            row[metric] = replace(row[metric], p_holm=p)
    return corrected
