"""Dice of the tested images by finding, age group and sex, where the archive names them.

Pure functions of `tested_images.mean_per_image`.
"""

from collections import defaultdict
from dataclasses import dataclass

from lungseg.arrays import Row
from lungseg.metrics import bootstrap
from lungseg.study.tested_images import ImageResults, Images, RunGroup, class_json, summarise_images

ATTRIBUTES = {"finding": "finding", "age_group": "age", "sex": "sex"}
"""Columns of study.parquet, and their names in tables."""
MIN_IMAGES = 10
"""Smaller subgroups are left out: their intervals say little, and free texts of findings make hundreds of them."""


@dataclass(frozen=True)
class Subgroup:
    """Dice of a run group on the images of a dataset that share a finding, an age group or a sex.

    attribute, value: such as `finding`, `normal`. class_name: "" in a study of one class.
    """

    run_group: RunGroup
    dataset: str
    role: str
    attribute: str
    value: str
    dice: bootstrap.Summary
    class_name: str = ""

    @property
    def label(self) -> str:
        """Display name, such as `finding: normal`."""
        return f"{ATTRIBUTES[self.attribute]}: {self.value}"

    def as_json(self) -> Row:
        """Flatten: dice is the mean, dice_low and dice_high its 95 % interval."""
        return {
            **self.run_group._asdict(),
            **class_json(self.class_name),
            "dataset": self.dataset,
            "role": self.role,
            "attribute": self.attribute,
            "value": self.value,
            "images": self.dice.images,
            "patients": self.dice.patients,
            "dice": self.dice.mean,
            "dice_low": self.dice.low,
            "dice_high": self.dice.high,
            "dice_basis": self.dice.basis,
        }


def find_subgroups(tested: ImageResults, class_name: str = "") -> tuple[Subgroup, ...]:
    """Summarise the subgroups of at least MIN_IMAGES images, where a dataset has two or more of an attribute."""
    found = []
    for (run_group, role, dataset), images in tested.items():
        for attribute in ATTRIBUTES:
            groups = _divide(images, attribute)
            for value, rows in sorted(groups.items()) if len(groups) > 1 else ():
                dice = summarise_images(rows, "dice")
                assert dice is not None, "every image of a subgroup has a Dice"
                found.append(Subgroup(run_group, dataset, role, attribute, value, dice, class_name))
    return tuple(found)


def _divide(images: Images, attribute: str) -> dict[str, list[Row]]:
    """Return the images that have a Dice by the value of an attribute; without small groups."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for image in images.values():
        value = image["rows"][0][attribute]
        if value and image["dice"] is not None:
            groups[value].append(image)
    return {value: rows for value, rows in groups.items() if len(rows) >= MIN_IMAGES}
