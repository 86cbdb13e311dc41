"""The leakage audit over prepared data sets, which reads the pictures that it has to compare."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lungseg.data.audit import COLUMNS, Pair, Row, find_pairs
from lungseg.data.datasets import PreparedData
from lungseg.data.hamming import Show, silent
from lungseg.data.reader import SampleReader


def audit_datasets(data: Sequence[PreparedData], wide: bool = True, show: Show = silent) -> list[Pair]:
    """Find the images that are one picture or of one patient, within and across data sets.

    `wide` also compares pictures that look alike at most: it finds several visits of one person under different names,
    and takes 20 s for 700 images. `show` takes how far it is.

    Raises:
        ShardError: a tar does not hold what its index says.

    """
    named = {part.name: part for part in data}

    def read(row: Row) -> NDArray[np.uint8]:
        part = named[row["dataset"]]
        # Few are read, so the others' places in their tars do not become objects: of a million they would take 2 GiB.
        own = part.index.filter(pc.equal(part.index.column("image_id"), row["image_id"]))
        return SampleReader([replace(part, index=own)], masks=False).read(0).image

    return find_pairs([row for part in data for row in part.index.select(COLUMNS).to_pylist()], read, wide, show)
