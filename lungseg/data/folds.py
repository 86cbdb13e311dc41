"""Who is in which fold, and which run trains and tests on whom: pure functions of ids and a seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lungseg.config import Protocol
from lungseg.errors import SettingsError

Row = dict[str, Any]


@dataclass(frozen=True)
class RunPlan:
    """One training of a study: the data sets it learns from, and the fold that it never sees."""

    protocol: Protocol
    train_on: tuple[str, ...]
    fold: int
    folds: int
    seed: int

    @property
    def name(self) -> str:
        """Readable name, unique within a study."""
        source = "pooled" if self.protocol == "pooled" else f"from-{self.train_on[0]}"
        return f"{source}-fold{self.fold}"


@dataclass(frozen=True)
class Split:
    """Positions of index rows: what a run trains on, its held-out fold, and the other data sets."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    cross: tuple[int, ...]


def plan_study(
    protocols: Sequence[Protocol], datasets: Sequence[str], folds: int, only: Sequence[int], seed: int
) -> list[RunPlan]:
    """List a study's runs: `pooled` one a fold, `source-to-source` one a fold and data set."""
    chosen = sorted(set(only)) or range(folds)
    runs = []
    for protocol in dict.fromkeys(protocols):
        sources = [tuple(datasets)] if protocol == "pooled" else [(dataset,) for dataset in datasets]
        runs += [RunPlan(protocol, source, fold, folds, seed) for source in sources for fold in chosen]
    return runs


def fold_of(group: str, folds: int, seed: int) -> int:
    """Fold of a group, by hash: it does not move when others come or go. The same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:8], "big") % folds


def split(rows: Sequence[Row], plan: RunPlan) -> Split:
    """Divide index rows (dataset, patient_id, sha256) for a run; no patient and no picture is on both sides.

    An image of another data set whose patient or picture the run trains on is in no part.

    Raises:
        SettingsError: a part that a run needs is empty.

    """
    groups = group_rows(rows)
    own = [row["dataset"] in plan.train_on for row in rows]
    held = [fold_of(group, plan.folds, plan.seed) == plan.fold for group in groups]
    learnt = {group for group, mine, out in zip(groups, own, held, strict=True) if mine and not out}
    numbers = range(len(rows))
    result = Split(
        train=tuple(i for i in numbers if own[i] and not held[i]),
        held_out=tuple(i for i in numbers if own[i] and held[i]),
        cross=tuple(i for i in numbers if not own[i] and groups[i] not in learnt),
    )
    if not result.train or not result.held_out:
        raise SettingsError(
            f"{plan.name}: {len(result.train)} images to train on and {len(result.held_out)} held out of {sum(own)}, "
            f"both must be 1 or more: lower --folds (now {plan.folds}), or add images"
        )
    return result


def group_rows(rows: Sequence[Row]) -> list[str]:
    """Name each row's group: rows of one patient of a data set, or of one and the same picture, share a group."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    # `~` sorts last, so a group is named by a patient, and a patient's new image does not rename (and move) it.
    keys = [(f"{row['dataset']}/{row['patient_id']}", f"~sha256/{row['sha256']}") for row in rows]
    for patient, picture in keys:
        first, second = sorted((root(patient), root(picture)))
        parent[second] = first
    return [root(patient) for patient, _ in keys]
