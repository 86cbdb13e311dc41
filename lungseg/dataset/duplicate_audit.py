"""Duplicate audit of prepared datasets: reads the images that `duplicates` has to compare, and keeps the result."""

import hashlib
import json
import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicates import (
    INDEX_COLUMNS,
    PAIRS,
    PAIRS_FILE,
    Pair,
    find_pairs,
    pairs_to_table,
)
from lungseg.dataset.hash_search import ProgressCallback, no_progress
from lungseg.dataset.sample_reader import read_sample
from lungseg.errors import InputError
from lungseg.plurals import counted
from lungseg.progress import ProgressLine
from lungseg.storage.table_formats import TableFormat

logger = logging.getLogger(__name__)

_FORMAT = TableFormat(PAIRS, nullable=frozenset({"distance", "correlation"}))  # only near pairs have them
_AUDITED = b"lungseg.audited"
_HASHES_AT_ONCE = 1 << 18


def linked_images(datasets: Sequence[PreparedDataset], out: str) -> list[Row]:
    """Return the pairs of images that must be in one fold, as rows of PAIRS, and write them to `out`.

    The search reads many images, so an earlier one of the same images is used, in `out` or beside the datasets.

    Raises:
        ShardError: a tar does not hold what its index says.

    """
    path = storage.join(out, PAIRS_FILE)
    digest = _digest_of(datasets)
    folders = dict.fromkeys([out, *(storage.parent_of(data.folder) for data in datasets)])
    table = next((table for folder in folders if (table := _earlier_audit(folder, digest)) is not None), None)
    if table is None:
        images = counted(sum(data.index.num_rows for data in datasets), "image")
        logger.info("searching for duplicates among %s", images)
        table = pairs_to_table(audit_datasets(datasets, ProgressLine(logger).update))
        table = table.replace_schema_metadata({**table.schema.metadata, _AUDITED: digest.encode()})
    storage.write_table(path, table)
    pairs: list[Row] = table.to_pylist()
    return pairs


def _digest_of(datasets: Sequence[PreparedDataset]) -> str:
    """Return storage.digest of the digest and the hashes of each dataset, without a Python object for each image."""
    text = hashlib.sha256(b"[")
    for number, data in enumerate(datasets):
        text.update(f'{", " if number else ""}["{data.digest}", ['.encode())
        for start in range(0, data.index.num_rows, _HASHES_AT_ONCE):
            hashes = data.index.column("phash").slice(start, _HASHES_AT_ONCE).to_pylist()
            text.update(((", " if start else "") + json.dumps(hashes)[1:-1]).encode())
        text.update(b"]]")
    text.update(b"]")
    return text.hexdigest()[:16]


def _earlier_audit(folder: str, digest: str) -> pa.Table | None:
    path = storage.join(folder, PAIRS_FILE)
    if not storage.exists(path):
        return None
    try:
        table = storage.read_table(path, expected=_FORMAT)
    except InputError as error:
        logger.warning("%s; searching for duplicates again", error)
        return None
    return table if table.schema.metadata.get(_AUDITED) == digest.encode() else None


def audit_datasets(datasets: Sequence[PreparedDataset], show: ProgressCallback = no_progress) -> list[Pair]:
    """Find pairs of images, within and across datasets, that show the same image or the same patient.

    show: receives progress messages.

    Raises:
        ShardError: a tar does not hold what its index says.

    """

    def read(row: Row) -> U8:
        # Few images are read. Converting the whole index to Python objects would take 2 GiB for a million rows.
        folder, index_row = next(
            (data.folder, match)
            for data in datasets
            if data.name == row["dataset"]
            for match in _matching_rows(data.index, row).to_pylist()
        )
        return read_sample(storage.join(folder, f"{index_row['shard']}.tar"), index_row, with_mask=False).image

    rows = [row for data in datasets for row in data.index.select(INDEX_COLUMNS).to_pylist()]
    return find_pairs(rows, read, show)


def _matching_rows(index: pa.Table, row: Row) -> pa.Table:
    """Select an image by id and digest: an older copy of the dataset may hold another image under the same id."""
    is_same = [pc.equal(index.column(name), row[name]) for name in ("image_id", "pixel_digest")]
    return index.filter(pc.and_(*is_same))
