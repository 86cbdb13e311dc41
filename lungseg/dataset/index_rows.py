"""Rows of index tables, each created as a Python object only when it is read."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

from lungseg.arrays import Row
from lungseg.arrow import pa


class IndexRows(Sequence[Row]):
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        pieces = [(number, batch) for number, table in enumerate(tables) for batch in table.to_batches()]
        self._table_of = [number for number, _ in pieces]
        # Arrays of one piece: finding the piece in each column would take longer than reading the value.
        self._columns = [list(zip(batch.schema.names, batch.columns, strict=True)) for _, batch in pieces]
        self._starts: list[int] = list(accumulate((batch.num_rows for _, batch in pieces), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def table_of(self, position: int) -> int:
        """Return the number of the table that has a row."""
        return self._table_of[self._piece_of(position)]

    def _piece_of(self, position: int) -> int:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return bisect_right(self._starts, position) - 1

    @overload
    def __getitem__(self, position: int) -> Row: ...
    @overload
    def __getitem__(self, position: slice) -> list[Row]: ...
    def __getitem__(self, position: int | slice) -> Row | list[Row]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        piece = self._piece_of(position)
        row = int(position) - self._starts[piece]
        return {name: column[row].as_py() for name, column in self._columns[piece]}
