"""Who is in which fold, and which run trains and tests on whom: pure functions of index rows and a seed.

scikit-learn's StratifiedGroupKFold is not used: it deals anew when images are added.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lungseg.config import Protocol
from lungseg.errors import SettingsError

Row = dict[str, Any]
Link = tuple[str, str]
"""Two images, as `dataset/image_id`, that must not be parted."""

_SLACK = 1  # images; 0 would fill folds evenly to one image, but move twice as many when one is taken out


@dataclass(frozen=True)
class RunPlan:
    """One training of a study: the data sets it learns from, and the fold that it never sees.

    validates: whether the fold after that one is kept for choices, and not trained on either.
    """

    protocol: Protocol
    train_on: tuple[str, ...]
    fold: int
    folds: int
    seed: int
    left_out: str = ""
    validates: bool = False

    @property
    def name(self) -> str:
        """Readable name, unique within a study."""
        sources = {
            "pooled": "pooled",
            "source-to-source": f"from-{self.train_on[0]}",
            "leave-one-dataset-out": f"without-{self.left_out}",
        }
        return f"{sources[self.protocol]}-fold{self.fold}"


@dataclass(frozen=True)
class Split:
    """Positions of index rows: what a run trains on, its held-out fold, the other data sets, what it validates on."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    cross: tuple[int, ...]
    validation: tuple[int, ...] = ()


def plan_study(
    protocols: Sequence[Protocol],
    datasets: Sequence[str],
    folds: int,
    only: Sequence[int],
    seed: int,
    validates: bool = False,
) -> list[RunPlan]:
    """List a study's runs: `pooled` one a fold, the other protocols one a fold and data set.

    Raises:
        SettingsError: leave-one-dataset-out with fewer than two data sets.

    """
    chosen = sorted(set(only)) or range(folds)
    runs = []
    for protocol in dict.fromkeys(protocols):
        for sources, left_out in _sources(protocol, tuple(datasets)):
            runs += [RunPlan(protocol, sources, fold, folds, seed, left_out, validates) for fold in chosen]
    return runs


def split(rows: Sequence[Row], plan: RunPlan, linked: Iterable[Link] = ()) -> Split:
    """Divide index rows for a run; no patient, no picture and no linked pair is on both sides.

    An image of another data set whose group the run trains on is in no part.

    Raises:
        SettingsError: a part that a run needs is empty.

    """
    groups = group_rows(rows, linked)
    own = [row["dataset"] in plan.train_on for row in rows]
    dealt = assign_folds(rows, groups, plan.folds, plan.seed)
    kept = (plan.fold + 1) % plan.folds if plan.validates else None
    parts: dict[str, list[int]] = {"train": [], "held_out": [], "validation": []}
    for number, (mine, fold) in enumerate(zip(own, dealt, strict=True)):
        if mine:
            parts["held_out" if fold == plan.fold else "validation" if fold == kept else "train"].append(number)
    used = {groups[i] for i in (*parts["train"], *parts["validation"])}
    cross = tuple(i for i in range(len(rows)) if not own[i] and groups[i] not in used)
    for name in ("train", "held_out", *(["validation"] if plan.validates else [])):
        if not parts[name]:
            raise SettingsError(
                f"{plan.name}: no image of {sum(own)} for {name.replace('_', '-')}, one or more is needed: "
                f"lower --folds (now {plan.folds}), or add images"
            )
    return Split(tuple(parts["train"]), tuple(parts["held_out"]), cross, tuple(parts["validation"]))


def assign_folds(rows: Sequence[Row], groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Give each row the fold of its group, 0..folds-1, stratified by data set and finding.

    A group goes, with its first row, to the fold that its hash likes best among the empty ones of that row's stratum,
    and then among those that hold at most one image more of it than the emptiest. So where groups are single images,
    two folds differ by two images of a stratum at most. Rows added at a data set's end move none of the earlier ones,
    unless they link two groups, or show a patient whom a later data set has too. Taking one image out of 688 moves
    about 4 % of the others; another order of the rows moves about 40 %.
    """
    filled: defaultdict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0] * folds)
    found: dict[str, int] = {}
    for row, group in zip(rows, groups, strict=True):
        counts = filled[row["dataset"], row.get("finding")]
        if group not in found:
            most = min(counts) + _SLACK if min(counts) else 0  # no fold takes a second before each has one
            open_to = [fold for fold in range(folds) if counts[fold] <= most]
            found[group] = min(open_to, key=lambda fold: _dislike(group, fold, seed))
        counts[found[group]] += 1
    return [found[group] for group in groups]


def group_rows(rows: Sequence[Row], linked: Iterable[Link] = ()) -> list[str]:
    """Name each row's group: rows of one patient of a data set, of one picture, or linked by a pair share a group.

    A group is named by the patient of its first row (by the image where nobody is named), which rows added later do not
    change. A linked image that is not among the rows is passed over.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    images = [f"{row['dataset']}/{row['image_id']}" for row in rows]
    patients = [f"{row['dataset']}/{row['patient_id'] or row['image_id']}" for row in rows]
    pairs = [(f"image {image}", f"patient {patient}") for image, patient in zip(images, patients, strict=True)]
    pairs += [(f"image {image}", f"picture {row['pixel_digest']}") for image, row in zip(images, rows, strict=True)]
    known = set(images)
    pairs += [(f"image {one}", f"image {other}") for one, other in linked if {one, other} <= known]
    for one, other in pairs:
        parent[root(other)] = root(one)
    names: dict[str, str] = {}
    return [names.setdefault(root(f"image {image}"), patient) for image, patient in zip(images, patients, strict=True)]


def _sources(protocol: Protocol, datasets: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """List what a protocol's runs train on, and the data set that they leave out."""
    if protocol == "pooled":
        return [(datasets, "")]
    if protocol == "source-to-source":
        return [((dataset,), "") for dataset in datasets]
    if len(datasets) < 2:
        raise SettingsError(
            f"--protocols leave-one-dataset-out with {len(datasets)} data set ({', '.join(datasets)}), expected two or "
            "more: pass another --data too, or --protocols pooled"
        )
    return [(tuple(other for other in datasets if other != dataset), dataset) for dataset in datasets]


def _dislike(group: str, fold: int, seed: int) -> bytes:
    """Rank a fold for a group by hash, the same on every machine; another seed ranks anew."""
    return hashlib.sha256(f"{seed}/{fold}/{group}".encode()).digest()
