"""Paired comparison of two studies on the images that both tested.

Pure functions of the rows of study.parquet (result_columns.STUDY_ROWS). Only runs with the same protocol, training
datasets, fold and test role are compared, whatever their seeds. An image tested by several runs counts once, with its
mean over them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from lungseg.arrays import Row
from lungseg.metrics import bootstrap, training_noise
from lungseg.metrics.training_noise import SeedSpread
from lungseg.study.cross_dataset import (
    compare_images,
    differences_json,
    gap_effects,
    gap_spread,
    held_out_images,
    holm_corrected,
    shared_images,
    spread_json,
)
from lungseg.study.result_text import format_difference, format_spread, more_lines, of_class
from lungseg.study.study_differences import StudyDifference
from lungseg.study.tested_images import ImageResults, Images, RunGroup, class_json, mean_per_image


@dataclass(frozen=True)
class StudyComparison:
    """Mean Dice of this study and of another one on the images of a dataset that both tested.

    metrics: this study minus the other one, for each of cross_dataset.COMPARED that images of both define. spreads: of
    the mean Dice of each study. class_name: "" where both studies have one class.
    """

    other_study: str
    run_group: RunGroup
    dataset: str
    role: str
    dice: float
    other_dice: float
    metrics: dict[str, bootstrap.PairedDifference]
    spreads: tuple[SeedSpread | None, SeedSpread | None] = (None, None)
    class_name: str = ""

    @property
    def paired(self) -> bootstrap.PairedDifference:
        """The main metric, Dice."""
        return self.metrics["dice"]

    def __str__(self) -> str:
        """Format as lines, the first about the Dice."""
        tested_on = f"{self.dataset}{of_class(self.class_name)}"
        dice = (
            f"{format_difference(self.paired)} on {self.paired.images} {self.role} images of {tested_on}: "
            f"{self.dice:.4f}, and {self.other_dice:.4f} in {self.other_study}; trained on {self.run_group.label}"
        )
        return "\n".join([dice, *more_lines(self.metrics, self.spreads)])

    def as_json(self) -> Row:
        """Flatten to one level: difference, p and so on are of the Dice, iou_difference and so on of the others."""
        names = ("other_study", "dataset", "role", "dice", "other_dice")
        spreads = {**spread_json(self.spreads[0], "dice_"), **spread_json(self.spreads[1], "other_dice_")}
        values = {name: getattr(self, name) for name in names}
        names_of = {**self.run_group._asdict(), **class_json(self.class_name)}
        return {**differences_json(self.metrics), **names_of, **values, **spreads}


@dataclass(frozen=True)
class GapComparison:
    """Generalisation gaps of this study and of another one, on the images that both tested.

    change: this gap minus the other one. spreads: of the gap of each study over its seeds. class_name: "" where both
    studies have one class.
    """

    other_study: str
    run_group: RunGroup
    dataset: str
    gap: float
    other_gap: float
    change: bootstrap.PairedDifference
    spreads: tuple[SeedSpread | None, SeedSpread | None] = (None, None)
    class_name: str = ""

    def __str__(self) -> str:
        """Format as one line, and the seeds in a second one."""
        tested_on = f"{self.dataset}{of_class(self.class_name)}"
        line = (
            f"gap to {tested_on}: {format_difference(self.change)}: {self.gap:z.4f}, and {self.other_gap:z.4f} in "
            f"{self.other_study}; trained on {self.run_group.label}"
        )
        seeds = f"\n  gap of {format_spread(self.spreads[0])}; other {format_spread(self.spreads[1])}"
        return line + (seeds if self.spreads != (None, None) else "")

    def as_json(self) -> Row:
        """Flatten to one level."""
        values = {name: getattr(self, name) for name in ("other_study", "dataset", "gap", "other_gap")}
        spreads = {**spread_json(self.spreads[0], "gap_"), **spread_json(self.spreads[1], "other_gap_")}
        names_of = {**self.run_group._asdict(), **class_json(self.class_name)}
        return {**asdict(self.change), **names_of, **values, **spreads}


@dataclass(frozen=True)
class StudyComparisons:
    """Comparisons with other studies, p_holm corrected over the rows of each table; and what else differs."""

    pairs: tuple[StudyComparison, ...] = ()
    gaps: tuple[GapComparison, ...] = ()
    differences: tuple[StudyDifference, ...] = ()


def compare(rows: Iterable[Row], other_study: str, other_rows: Iterable[Row]) -> StudyComparisons:
    """Compare the rows of a study with those of another study; return nothing if they share no image.

    Each class that both studies have is compared on its own.
    """
    own, other = list(rows), list(other_rows)
    folds = {_fold(row) for row in own} & {_fold(row) for row in other}
    classes = dict.fromkeys(row["class"] for row in own)
    is_one_class = len({row["class"] for row in (*own, *other)}) == 1
    pairs: list[StudyComparison] = []
    gaps: list[GapComparison] = []
    for name in classes:
        own_results, other_results = (
            mean_per_image([row for row in side if row["class"] == name and _fold(row) in folds])
            for side in (own, other)
        )
        shown = "" if is_one_class else name
        found = _compare_images(own_results, other_study, other_results)
        pairs += [replace(pair, class_name=shown) for pair in found]
        found_gaps = _compare_gaps(own_results, other_study, other_results)
        gaps += [replace(gap, class_name=shown) for gap in found_gaps]
    return StudyComparisons(tuple(pairs), tuple(gaps))


def joined(comparisons: Sequence[StudyComparisons]) -> StudyComparisons:
    """Join the comparisons with several studies to one table each, and correct p over its rows."""
    pairs = [pair for item in comparisons for pair in item.pairs]
    gaps = [gap for item in comparisons for gap in item.gaps]
    metrics = holm_corrected([pair.metrics for pair in pairs])
    changes = holm_corrected([{"gap": gap.change} for gap in gaps])
    return StudyComparisons(
        tuple(replace(pair, metrics=corrected) for pair, corrected in zip(pairs, metrics, strict=True)),
        tuple(replace(gap, change=corrected["gap"]) for gap, corrected in zip(gaps, changes, strict=True)),
        tuple(difference for item in comparisons for difference in item.differences),
    )


def count_moved(rows: Iterable[Row], other_rows: Iterable[Row]) -> int:
    """Count the images that only one of two studies held out in a fold that both trained."""
    own, other = (_held_out_ids_by_fold(side) for side in (rows, other_rows))
    return sum(len(own[fold] ^ other[fold]) for fold in own.keys() & other.keys())


def _held_out_ids_by_fold(rows: Iterable[Row]) -> dict[tuple[str, str, int], set[tuple[str, str]]]:
    held_out: dict[tuple[str, str, int], set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        if row["role"] == "held-out":
            held_out[_fold(row)].add((row["dataset"], row["image_id"]))
    return held_out


def _compare_images(own: ImageResults, other_study: str, other: ImageResults) -> Iterable[StudyComparison]:
    for (run_group, role, dataset), images in own.items():
        others = other.get((run_group, role, dataset), {})
        metrics, spreads = compare_images(images, others)
        if "dice" in metrics:
            shared = shared_images(images, others, "dice")
            dice, other_dice = (fmean(side[name]["dice"] for name in shared) for side in (images, others))
            yield StudyComparison(other_study, run_group, dataset, role, dice, other_dice, metrics, spreads)


def _compare_gaps(own: ImageResults, other_study: str, other: ImageResults) -> Iterable[GapComparison]:
    for (run_group, role, dataset), images in own.items():
        held_out = held_out_images(own, run_group), held_out_images(other, run_group)
        cross = images, other.get((run_group, role, dataset), {})
        if role == "cross" and shared_images(*held_out, "dice") and shared_images(*cross, "dice"):
            yield _compare_gap(other_study, run_group, dataset, _paired(*held_out), _paired(*cross))


def _paired(first: Images, second: Images) -> tuple[list[Row], list[Row]]:
    """Return the images of both sides that define the Dice in both, in the same order."""
    shared = shared_images(first, second, "dice")
    return [first[name] for name in shared], [second[name] for name in shared]


def _compare_gap(
    other_study: str,
    run_group: RunGroup,
    dataset: str,
    held_out: tuple[list[Row], list[Row]],
    cross: tuple[list[Row], list[Row]],
) -> GapComparison:
    """Compare the gaps of two studies; each pair of images is of this study and of the other one."""
    differences = [
        ([one["dice"] - other["dice"] for one, other in zip(*pair, strict=True)], [one["patient"] for one in pair[0]])
        for pair in (held_out, cross)
    ]
    effects = [gap_effects(held_out[side], cross[side]) for side in (0, 1)]
    repeated = [*effects[0], *effects[1]] if all(map(training_noise.all_repeated, effects)) else []
    change = bootstrap.compare_gaps(*differences[0], *differences[1], repeated)
    gap, other_gap = (
        fmean(image["dice"] for image in held_out[side]) - fmean(image["dice"] for image in cross[side])
        for side in (0, 1)
    )
    spreads = gap_spread(held_out[0], cross[0]), gap_spread(held_out[1], cross[1])
    return GapComparison(other_study, run_group, dataset, gap, other_gap, change, spreads)


def _fold(row: Row) -> tuple[str, str, int]:
    return row["protocol"], row["train_on"], row["fold"]
