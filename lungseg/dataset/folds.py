"""Fold assignment and the split of each run: pure functions of index rows and a seed.

scikit-learn's StratifiedGroupKFold does not fit: it assigns all images again when images are added.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lungseg.arrays import Row
from lungseg.config import Protocol
from lungseg.errors import SettingsError

Link = tuple[str, str]
"""Two images, as `dataset/image_id`, that must be on the same side of a split."""

# Images by which a fold may exceed the emptiest one. 0 would balance folds to one image, but move twice as many images
# when one is removed.
_MAX_IMBALANCE = 1


@dataclass(frozen=True)
class RunPlan:
    """One training run of a study: the datasets that it trains on, the held-out fold and the seed of the training.

    split_seed: seed of the folds. validates: whether the fold after the held-out fold is the validation fold, which is
    not trained on either.
    """

    protocol: Protocol
    train_on: tuple[str, ...]
    fold: int
    folds: int
    split_seed: int
    left_out: str = ""
    validates: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a readable name, unique within a study."""
        sources = {
            "pooled": "pooled",
            "source-to-source": f"from-{self.train_on[0]}",
            "leave-one-dataset-out": f"without-{self.left_out}",
        }
        seed = f"-seed{self.seed}" if self.seed else ""  # the default is not part of a name
        return f"all{seed}" if self.protocol == "all" else f"{sources[self.protocol]}-fold{self.fold}{seed}"


@dataclass(frozen=True)
class Split:
    """Positions of index rows: training, held-out fold, cross-dataset test, validation fold."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    cross: tuple[int, ...]
    validation: tuple[int, ...] = ()


def plan_study(
    protocols: Sequence[Protocol],
    datasets: Sequence[str],
    folds: int,
    only: Sequence[int],
    split_seed: int,
    validates: bool = False,
) -> list[RunPlan]:
    """List the runs of a study: `all` has one, `pooled` one per fold, the other protocols one per fold and dataset.

    Raises:
        SettingsError: leave-one-dataset-out with fewer than two datasets.

    """
    selected_folds = sorted(set(only)) or range(folds)
    runs = []
    for protocol in dict.fromkeys(protocols):
        for sources, left_out in _sources(protocol, tuple(datasets)):
            runs += [
                RunPlan(protocol, sources, fold, folds, split_seed, left_out, validates)
                for fold in (selected_folds if protocol != "all" else (0,))
            ]
    return runs


def split(rows: Sequence[Row], plan: RunPlan, linked: Iterable[Link] = ()) -> Split:
    """Split index rows for a run; no patient, image or linked pair is on both sides.

    An image of another dataset whose group the run trains on is in no subset. `all` trains on every row.

    Raises:
        SettingsError: a subset that the run needs is empty.

    """
    if plan.protocol == "all":
        return Split(tuple(range(len(rows))), (), ())
    groups = group_rows(rows, linked)
    is_source = [row["dataset"] in plan.train_on for row in rows]
    fold_of = assign_folds(rows, groups, plan.folds, plan.split_seed)
    validation_fold = (plan.fold + 1) % plan.folds if plan.validates else None
    subsets: dict[str, list[int]] = {"train": [], "held_out": [], "validation": []}
    for position, (in_source, fold) in enumerate(zip(is_source, fold_of, strict=True)):
        if in_source:
            name = "held_out" if fold == plan.fold else "validation" if fold == validation_fold else "train"
            subsets[name].append(position)
    used_groups = {groups[i] for i in (*subsets["train"], *subsets["validation"])}
    cross = tuple(i for i in range(len(rows)) if not is_source[i] and groups[i] not in used_groups)
    for name in ("train", "held_out", *(["validation"] if plan.validates else [])):
        if not subsets[name]:
            raise SettingsError(
                f"{plan.name}: the {name.replace('_', '-')} subset has none of {sum(is_source)} images, expected at "
                f"least one: lower --folds (now {plan.folds}), or add images"
            )
    return Split(tuple(subsets["train"]), tuple(subsets["held_out"]), cross, tuple(subsets["validation"]))


def assign_folds(rows: Sequence[Row], groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Return the fold of each row's group, 0..folds-1, stratified by dataset and finding.

    A group whose rows have a `fold` from the archive keeps the first of them; -1 means trained on in every fold. The
    first row of any other group decides its fold. Candidates are the empty folds of that row's stratum, then the folds
    with at most one image of the stratum more than the emptiest. Among the candidates, the fold with the lowest hash of
    seed, fold and group wins. Where each group is one image, two folds differ by at most two images per stratum. Rows
    appended to a dataset move no earlier row, unless they link two groups or show a patient of a later dataset.
    Removing one of 688 images moves about 4 % of the others; shuffling the rows moves about 40 %.

    Raises:
        SettingsError: a given fold does not exist.

    """
    filled: defaultdict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0] * folds)
    fold_of_group = _given_folds(rows, groups, folds)
    for row, group in zip(rows, groups, strict=True):
        counts = filled[row["dataset"], row.get("finding")]
        if group not in fold_of_group:
            limit = (
                min(counts) + _MAX_IMBALANCE if min(counts) else 0
            )  # each fold gets one image before any gets a second
            candidates = [fold for fold in range(folds) if counts[fold] <= limit]
            fold_of_group[group] = min(candidates, key=lambda fold: _fold_hash(group, fold, seed))
        if fold_of_group[group] >= 0:
            counts[fold_of_group[group]] += 1
    return [fold_of_group[group] for group in groups]


def _given_folds(rows: Sequence[Row], groups: Sequence[str], folds: int) -> dict[str, int]:
    """Return the fold of each group whose rows have one from the archive."""
    given: dict[str, int] = {}
    for row, group in zip(rows, groups, strict=True):
        fold = row.get("fold")
        if fold is not None and fold >= folds:
            raise SettingsError(
                f"{row['dataset']} has its own folds, up to fold {fold}, expected 0 to {folds - 1}: pass "
                f"--folds {max(other.get('fold') or 0 for other in rows) + 1} or more, or prepare it without "
                "splits_final.json"
            )
        if fold is not None:
            given.setdefault(group, fold)
    return given


def group_rows(rows: Sequence[Row], linked: Iterable[Link] = ()) -> list[str]:
    """Return the group name of each row; rows of one patient, with one pixel digest, or linked by a pair share a group.

    The name is the patient of the group's first row, or its image where the patient is unknown. Rows appended later do
    not change it. Links to images that are not among the rows are ignored.
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
    """List the training datasets of a protocol's runs, each with the dataset that is left out."""
    if protocol in ("pooled", "all"):
        return [(datasets, "")]
    if protocol == "source-to-source":
        return [((dataset,), "") for dataset in datasets]
    if len(datasets) < 2:
        raise SettingsError(
            f"--protocols leave-one-dataset-out with {len(datasets)} dataset ({', '.join(datasets)}), expected two or "
            "more: add another --data, or --protocols pooled"
        )
    return [(tuple(other for other in datasets if other != dataset), dataset) for dataset in datasets]


def _fold_hash(group: str, fold: int, seed: int) -> bytes:
    """Return a sort key that ranks folds for a group, the same on every machine."""
    return hashlib.sha256(f"{seed}/{fold}/{group}".encode()).digest()
