"""Paired comparison of two studies on the images that both tested.

Pure functions of the rows of study.parquet (schema.STUDY_ROWS). Only runs with the same protocol, training datasets,
fold and test role are compared. An image tested by several runs counts once, with its mean over them.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean

from lungseg.arrays import Row
from lungseg.metrics import bootstrap
from lungseg.plurals import counted
from lungseg.study.cross_dataset import RunGroup, format_difference, mean_per_image


@dataclass(frozen=True)
class StudyComparison:
    """Mean Dice of this study and of another one on the images of a dataset that both tested.

    paired: this study minus the other one.
    """

    other_study: str
    run_group: RunGroup
    dataset: str
    role: str
    dice: float
    other_dice: float
    paired: bootstrap.PairedDifference

    def __str__(self) -> str:
        """Format as one line."""
        return (
            f"{format_difference(self.paired)} on {counted(self.paired.images, f'{self.role} image')} of "
            f"{self.dataset}: "
            f"{self.dice:.4f}, and {self.other_dice:.4f} in {self.other_study}; trained on {self.run_group.label}"
        )

    def as_json(self) -> Row:
        """Flatten to one level. p is not corrected for multiple comparisons."""
        values = asdict(self)
        del values["run_group"]
        return {**values.pop("paired"), **self.run_group._asdict(), **values}


def compare(rows: Iterable[Row], other_study: str, other_rows: Iterable[Row]) -> list[StudyComparison]:
    """Compare the rows of a study with those of another study; return nothing if they share no image."""
    own, other = list(rows), list(other_rows)
    folds = {_fold(row) for row in own} & {_fold(row) for row in other}
    own_images, other_images = (mean_per_image([row for row in side if _fold(row) in folds]) for side in (own, other))
    comparisons = []
    for (run_group, role, dataset), images in own_images.items():
        others = other_images.get((run_group, role, dataset), {})
        shared = [
            name for name in images if name in others and None not in (images[name]["dice"], others[name]["dice"])
        ]
        if shared:
            dice, other_dice = ([side[name]["dice"] for name in shared] for side in (images, others))
            paired = bootstrap.compare(dice, other_dice, [images[name]["patient"] for name in shared])
            comparisons.append(
                StudyComparison(other_study, run_group, dataset, role, fmean(dice), fmean(other_dice), paired)
            )
    return comparisons


def _fold(row: Row) -> tuple[str, str, int]:
    return row["protocol"], row["train_on"], row["fold"]
