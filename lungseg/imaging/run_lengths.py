"""Masks as runs of pixels in their columns: a mask of millions of pixels has a few thousand runs."""

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from lungseg.arrays import I64, U8, Bools


@dataclass(frozen=True, eq=False)
class Runs:
    """A mask of `shape` (height, width) as runs, i64[N] each: run i marks the rows from starts[i] to stops[i] - 1.

    Runs are ordered by column, then row. Two runs of a column do not touch.
    """

    shape: tuple[int, int]
    columns: I64
    starts: I64
    stops: I64

    @classmethod
    def from_mask(cls, mask: U8) -> "Runs":
        """Return the runs of a mask u8[H,W] in {0,1}."""
        left, top, width, height = cv2.boundingRect(mask)
        box = mask[top : top + height, left : left + width]
        changes = np.empty((height + 1, width), np.bool_)
        if width:
            changes[0], changes[-1] = box[0], box[-1]
            np.not_equal(box[1:], box[:-1], out=changes[1:-1])
        return cls.from_changes((mask.shape[0], mask.shape[1]), *find_changes(changes, top, left))

    @classmethod
    def from_changes(cls, shape: tuple[int, int], rows: I64, columns: I64) -> "Runs":
        """Return the runs that start and stop at places i64[M] each, where a pixel differs from the one above.

        The places are ordered by row within each column.
        """
        order = np.argsort(columns, kind="stable")
        rows, columns = rows[order], columns[order]
        return cls(shape, columns[::2], rows[::2], rows[1::2])

    def to_mask(self) -> U8:
        """Return the mask u8[H,W] in {0,1}."""
        mask = np.zeros(self.shape, np.uint8)
        if not self.columns.size:
            return mask
        (top, left), (height, width) = self.corner, self.extent
        changes = np.zeros((height + 1, width), np.uint8)
        changes[self.starts - top, self.columns - left] = 1
        changes[self.stops - top, self.columns - left] = 1
        for above, row in pairwise(changes):  # a tenth of the time of bitwise_xor.accumulate
            np.bitwise_xor(above, row, out=row)
        mask[top : top + height, left : left + width] = changes[:-1]
        return mask

    @property
    def lengths(self) -> I64:
        """Pixels of each run, i64[N]."""
        return self.stops - self.starts

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.lengths.sum())

    @property
    def corner(self) -> tuple[int, int]:
        """First row and first column of the bounding box; there is at least one run."""
        return int(self.starts.min()), int(self.columns[0])

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the bounding box; there is at least one run."""
        top, left = self.corner
        return int(self.stops.max()) - top, int(self.columns[-1]) + 1 - left

    def select(self, chosen: Bools) -> "Runs":
        """Return only some runs; chosen: bool[N]."""
        if chosen.all():
            return self
        return replace(self, columns=self.columns[chosen], starts=self.starts[chosen], stops=self.stops[chosen])

    def sample(self, step: int) -> "Runs":
        """Return the runs of `mask[::step, ::step]`."""
        starts, stops = (-(-rows // step) for rows in (self.starts, self.stops))
        height, width = (-(-length // step) for length in self.shape)
        sampled = Runs((height, width), self.columns // step, starts, stops)
        sampled = sampled.select((self.columns % step == 0) & (starts < stops))
        same_column = sampled.columns[1:] == sampled.columns[:-1]
        touching = np.zeros(sampled.columns.size, np.bool_)
        touching[:-1] = same_column & (sampled.stops[:-1] == sampled.starts[1:])
        return fill(sampled, touching)

    def count_common(self, other: "Runs") -> int:
        """Count the pixels that are in both masks; they have the same shape."""
        if not self.columns.size or not other.columns.size:
            return 0
        first, before = self._positions(), np.concatenate([[0], np.cumsum(self.lengths)])
        starts, stops = other._positions()

        def pixels_before(positions: I64) -> I64:
            runs = np.searchsorted(first[0], positions, "right") - 1
            counted = before[runs] + np.minimum(positions - first[0][runs], self.lengths[runs])
            return np.where(runs >= 0, counted, 0)

        return int((pixels_before(stops) - pixels_before(starts)).sum())

    def union(self, other: "Runs") -> "Runs":
        """Return the pixels that are in either mask; they have the same shape."""
        return Runs.from_mask(self.to_mask() | other.to_mask())

    def _positions(self) -> tuple[I64, I64]:
        """Return the start and the stop of each run in the mask as one sequence of columns."""
        return self.columns * self.shape[0] + self.starts, self.columns * self.shape[0] + self.stops


def find_changes(changes: Bools, top: int, left: int) -> tuple[I64, I64]:
    """Return rows and columns of the true pixels of bool[h,w], whose first pixel is at row `top` and column `left`."""
    rows, columns = np.divmod(np.flatnonzero(changes), max(1, changes.shape[1]))
    return rows + top, columns + left


def label_runs(runs: Runs, connectivity: int = 8) -> tuple[I64, int]:
    """Return the component of each run, i64[N] from 0, and the number of components; connectivity is 4 or 8.

    Components are numbered by their first pixel in the order of reading.
    """
    roots = _find_roots(runs.columns.size, *_touching(runs, reach=connectivity == 8))
    first_pixel = np.full(roots.size, np.iinfo(np.int64).max)
    np.minimum.at(first_pixel, roots, runs.starts * runs.shape[1] + runs.columns)
    components = np.flatnonzero(roots == np.arange(roots.size))
    numbers = np.zeros(roots.size, np.int64)
    numbers[components[np.argsort(first_pixel[components])]] = np.arange(components.size)
    return numbers[roots], int(components.size)


def find_holes(runs: Runs) -> Bools:
    """Return for each run whether the background below it, up to the next run, is a hole, bool[N].

    A hole is background that is not connected to the border of the mask: 4-connected, as the mask is 8-connected.
    """
    if runs.columns.size == np.unique(runs.columns).size:
        return np.zeros(runs.columns.size, np.bool_)
    (top, left), (height, width) = runs.corner, runs.extent
    columns = np.arange(left - 1, left + width + 1)  # with a border of background around the bounding box
    starts = np.concatenate([np.full(columns.size, top - 1), runs.stops])
    stops = np.concatenate([runs.starts, np.full(columns.size, top + height + 1)])
    by_start = np.argsort(np.concatenate([columns, runs.columns]), kind="stable")
    by_stop = np.argsort(np.concatenate([runs.columns, columns]), kind="stable")
    all_columns = np.concatenate([columns, runs.columns])[by_start]
    labels, _ = label_runs(Runs(runs.shape, all_columns, starts[by_start], stops[by_stop]), connectivity=4)
    is_hole = np.empty(labels.size, np.bool_)
    is_hole[by_start] = labels != labels[0]
    return is_hole[columns.size :]


def fill(runs: Runs, holes: Bools) -> Runs:
    """Fill the background below these runs, bool[N], up to the next run of their column."""
    if not holes.any():
        return runs
    starts = ~np.concatenate([[False], holes[:-1]])
    return replace(runs, columns=runs.columns[starts], starts=runs.starts[starts], stops=runs.stops[~holes])


def _touching(runs: Runs, reach: bool) -> tuple[I64, I64]:
    """Return the pairs of runs, i64[M] each, that touch in neighbouring columns; reach: also at a corner."""
    height = runs.shape[0] + 8  # so that runs of different columns stay apart
    starts, stops = runs.columns * height + runs.starts, runs.columns * height + runs.stops
    first = np.searchsorted(stops, starts + height - reach, "right")
    counts = np.searchsorted(starts, stops + height + reach, "left") - first
    own = np.repeat(np.arange(counts.size), counts)
    return own, np.arange(own.size) + np.repeat(first - np.cumsum(counts) + counts, counts)


def _find_roots(count: int, first: I64, second: I64) -> I64:
    """Return the lowest member of each node's component in a graph with the edges (first, second)."""
    parents = np.arange(count)
    while True:
        ends = parents[first], parents[second]
        low, high = np.minimum(*ends), np.maximum(*ends)
        if np.array_equal(low, high):
            return parents
        np.minimum.at(parents, high, low)
        while not np.array_equal(grandparents := parents[parents], parents):
            parents = grandparents
