"""Rows of index tables, each created as a Python object only when it is read."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

import pyarrow as pa

from lungseg.arrays import Row


class IndexRows(Sequence[Row]):
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = tables
        self._starts: list[int] = list(accumulate((table.num_rows for table in tables), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def table_of(self, position: int) -> int:
        """Return the number of the table that has a row."""
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
        number = self.table_of(position)
        table, row = self._tables[number], int(position) - self._starts[number]
        return {name: table.column(name)[row].as_py() for name in table.column_names}
