"""Duplicate audit of prepared datasets: reads the images that `duplicates` has to compare."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicates import INDEX_COLUMNS, Pair, find_pairs
from lungseg.dataset.hash_search import ProgressCallback, no_progress
from lungseg.dataset.sample_reader import read_sample


def audit_datasets(
    datasets: Sequence[PreparedDataset], wide: bool = True, show: ProgressCallback = no_progress
) -> list[Pair]:
    """Find pairs of images, within and across datasets, that show the same image or the same patient.

    wide: also compare images whose hashes are farther apart. This finds several visits of one person under different
    names, and takes 20 s for 700 images. show: receives progress messages.

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
    return find_pairs(rows, read, wide, show)


def _matching_rows(index: pa.Table, row: Row) -> pa.Table:
    """Select an image by id and digest: an older copy of the dataset may hold another image under the same id."""
    is_same = [pc.equal(index.column(name), row[name]) for name in ("image_id", "pixel_digest")]
    return index.filter(pc.and_(*is_same))
