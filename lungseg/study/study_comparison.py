"""A study against another: what other settings or another preparation change on the same images.

Pure functions of study.parquet's rows (schema.STUDY_ROWS). Only what was trained on the same data sets in the same
protocol and fold and tested in the same role is compared; an image that several runs were tested on counts with their
mean.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean

from lungseg.metrics import bootstrap
from lungseg.study.cross_dataset import Row, Trained, differ, each_once


@dataclass(frozen=True)
class Against:
    """Dice of this study and of another on the images of a data set that both were tested on.

    here, there: means over those images. paired: this study minus the other.
    """

    study: str
    trained: Trained
    dataset: str
    role: str
    here: float
    there: float
    paired: bootstrap.Paired

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{differ(self.paired)} on {self.paired.images} {self.role} images of {self.dataset}: {self.here:.4f}, and "
            f"{self.there:.4f} in {self.study}; trained on {self.trained.label}"
        )

    def as_json(self) -> Row:
        """Flatten it; p is not corrected for the number of comparisons."""
        found = asdict(self)
        return {**found.pop("paired"), **self.trained._asdict(), **{k: v for k, v in found.items() if k != "trained"}}


def compare(rows: Iterable[Row], study: str, other: Iterable[Row]) -> list[Against]:
    """Compare a study's rows with those of another, whose name is `study`; nothing where they share no image."""
    mine, yours = list(rows), list(other)
    folds = {_fold(row) for row in mine} & {_fold(row) for row in yours}
    ours, theirs = (each_once([row for row in part if _fold(row) in folds]) for part in (mine, yours))
    found = []
    for (trained, role, dataset), images in ours.items():
        same = theirs.get((trained, role, dataset), {})
        both = [one for one in images if one in same and None not in (images[one]["dice"], same[one]["dice"])]
        if both:
            here, there = ([side[one]["dice"] for one in both] for side in (images, same))
            paired = bootstrap.compare(here, there, [images[one]["patient"] for one in both])
            found.append(Against(study, trained, dataset, role, fmean(here), fmean(there), paired))
    return found


def _fold(row: Row) -> tuple[str, str, int]:
    return row["protocol"], row["train_on"], row["fold"]
