"""pyarrow. An edge installation (requirements-edge.txt) has none: a replacement then reads and writes local files."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pacsv
    import pyarrow.fs as pafs
    import pyarrow.parquet as pq

__all__ = ["HAS_ARROW", "pa", "pacsv", "pafs", "pc", "pq"]

HAS_ARROW = importlib.util.find_spec("pyarrow") is not None
"""Whether tables and buckets can be read and written."""


def _load(name: str) -> Any:
    if HAS_ARROW:
        return importlib.import_module(name)
    from lungseg import without_arrow

    return {"pyarrow": without_arrow, "pyarrow.fs": without_arrow.fs}.get(name, without_arrow.missing)


if not TYPE_CHECKING:
    pa, pacsv, pafs = _load("pyarrow"), _load("pyarrow.csv"), _load("pyarrow.fs")
    pc, pq = _load("pyarrow.compute"), _load("pyarrow.parquet")
