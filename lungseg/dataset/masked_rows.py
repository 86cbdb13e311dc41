"""The rows of an index that have a mask: only these are divided into folds and tested."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Positions = NDArray[np.int64]
"""Positions of index rows."""


def masked(index: pa.Table) -> NDArray[np.bool_]:
    """Return whether each row has a mask, bool[N]."""
    mask: NDArray[np.bool_] = index.column("mask_size").to_numpy() > 0
    return mask


def masked_rows(index: pa.Table) -> pa.Table:
    """Return the rows that have a mask; without a copy if all have."""
    has_mask = masked(index)
    return index if has_mask.all() else index.filter(pa.array(has_mask))


def groups_within(groups: Positions, kept: NDArray[np.bool_]) -> Positions:
    """Return the groups of the kept rows: the position, among these, of the first row of each one's group."""
    _, firsts, inverse = np.unique(groups[kept], return_index=True, return_inverse=True)
    own: Positions = firsts[inverse]
    return own
