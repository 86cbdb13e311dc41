"""The leakage audit over prepared data sets, which reads the pictures that it has to compare."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicates import INDEX_COLUMNS, Pair, Row, find_pairs
from lungseg.dataset.hash_search import ProgressCallback, no_progress
from lungseg.dataset.sample_reader import SampleReader


def audit_datasets(
    data: Sequence[PreparedDataset], wide: bool = True, show: ProgressCallback = no_progress
) -> list[Pair]:
    """Find the images that are one picture or of one patient, within and across data sets.

    `wide` also compares pictures that look alike at most: it finds several visits of one person under different names,
    and takes 20 s for 700 images. `show` takes how far it is.

    Raises:
        ShardError: a tar does not hold what its index says.

    """

    def read(row: Row) -> NDArray[np.uint8]:
        # Few are read, so the others' places in their tars do not become objects: of a million they would take 2 GiB.
        alone = [replace(part, index=_of_image(part.index, row)) for part in data if part.name == row["dataset"]]
        return SampleReader(alone, masks=False).read(0).image

    return find_pairs([row for part in data for row in part.index.select(INDEX_COLUMNS).to_pylist()], read, wide, show)


def _of_image(index: pa.Table, row: Row) -> pa.Table:
    """Find an image in an index; a copy of a data set may lie beside it, in which the image has another picture."""
    same = [pc.equal(index.column(name), row[name]) for name in ("image_id", "pixel_digest")]
    return index.filter(pc.and_(*same))
