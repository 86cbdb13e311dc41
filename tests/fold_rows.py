"""Folds and splits of index rows that are given as dictionaries, and results as plain lists and tuples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lungseg.arrays import Row
from lungseg.dataset import folds

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "image_id", "patient_id", "pixel_digest", "finding")),
        ("fold", pa.int32()),
        ("mask_size", pa.int64()),
    ]
)


class Subsets(NamedTuple):
    """The positions of a `folds.Split`."""

    train: tuple[int, ...]
    held_out: tuple[int, ...] = ()
    cross: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()


def index_of(rows: Sequence[Row]) -> pa.Table:
    """Return an index; rows have a mask unless their mask_size is 0."""
    complete = [{"mask_size": 1, **row} for row in rows]
    return pa.Table.from_pylist([{name: row.get(name) for name in _SCHEMA.names} for row in complete], _SCHEMA)


def group_rows(rows: Sequence[Row], linked: Sequence[folds.Link] = ()) -> list[str]:
    """Return the name of each row's group."""
    index = index_of(rows)
    return folds.group_names(index, folds.group_rows(index, linked))


def assign_folds(rows: Sequence[Row], groups: Sequence[str], count: int, seed: int) -> list[int]:
    """Return the fold of each row; groups: of `group_rows`."""
    first = np.array([groups.index(group) for group in groups], np.int64)
    assigned: list[int] = folds.assign_folds(index_of(rows), first, count, seed).tolist()
    return assigned


def split(rows: Sequence[Row], plan: folds.RunPlan, linked: Sequence[folds.Link] = ()) -> Subsets:
    index = folds.with_groups_and_folds(index_of(rows), linked, plan.folds, plan.split_seed)
    return subsets(folds.split(index, plan))


def subsets(split: folds.Split) -> Subsets:
    return Subsets(*(tuple(getattr(split, name).tolist()) for name in Subsets._fields))
