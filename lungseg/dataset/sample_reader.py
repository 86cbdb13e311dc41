"""Read samples of prepared datasets from their tars. Every stage that needs a prepared sample reads it here."""

import threading
from collections.abc import Callable, Sequence

from lungseg import storage
from lungseg.arrays import Row
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.index_rows import IndexRows
from lungseg.dataset.shard_cache import ShardCache, read_ranges
from lungseg.dataset.shard_format import decode_sample, member_ranges, verify_checksums
from lungseg.errors import ShardError
from lungseg.schema import Sample

RangeReader = Callable[[str, dict[str, tuple[int, int]]], dict[str, bytes]]
"""Reads byte ranges (offset, size) of a tar, by name."""


def read_sample(
    tar: str, row: Row, class_count: int = 1, with_mask: bool = True, reader: RangeReader = read_ranges
) -> Sample:
    """Read the sample that an index row describes, verify its checksums and decode it.

    Raises:
        ShardError: the tar is damaged, or does not hold this sample at the offsets of the index.
        InputError: the tar cannot be read.

    """
    location = f"{tar}#{row['image_id']}"
    ranges = member_ranges(row)
    if not with_mask:
        ranges.pop("mask", None)
    members = reader(tar, ranges)
    verify_checksums(row, members, location)
    sample = decode_sample(members, location, class_count)
    if (sample.dataset, sample.image_id) != (row["dataset"], row["image_id"]):
        raise ShardError(
            f"{location}: the tar holds {sample.dataset}/{sample.image_id} there, the index expects "
            f"{row['dataset']}/{row['image_id']}: run lungseg prepare again"
        )
    return sample


class SampleReader:
    """Reads samples of prepared datasets by position, from any thread, and caches decoded samples.

    cache_mib: memory for decoded samples. disk_mib: local disk space for copies of tars that are stored in a bucket.
    with_masks: whether masks are read too.
    """

    def __init__(
        self, datasets: Sequence[PreparedDataset], cache_mib: int = 0, disk_mib: int = 0, with_masks: bool = True
    ) -> None:
        self.rows = IndexRows([data.index for data in datasets])
        self._datasets = datasets
        self._cache: dict[int, Sample] = {}
        self._free_bytes = cache_mib << 20
        self._with_masks = with_masks
        self._tars = ShardCache(disk_mib)
        self._lock = threading.Lock()

    def read(self, position: int) -> Sample:
        """Read one sample; raises as `read_sample`."""
        cached = self._cache.get(position)
        if cached is not None:
            return cached
        row, data = self.rows[position], self._datasets[self.rows.table_of(position)]
        tar = storage.join(data.folder, f"{row['shard']}.tar")
        sample = read_sample(tar, row, len(data.preprocess.classes), self._with_masks, self._tars.read)
        self._add_to_cache(position, sample)
        return sample

    def _add_to_cache(self, position: int, sample: Sample) -> None:
        size = sample.image.nbytes * (1 if sample.mask is None else 2)
        with self._lock:
            if position not in self._cache and size <= self._free_bytes:
                self._cache[position] = sample
                self._free_bytes -= size
