"""Samples of prepared data sets, read from their tars by position."""

import threading
from collections.abc import Sequence
from typing import Any

from lungseg import storage
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.shard_cache import ShardCache
from lungseg.dataset.shard_format import decode_sample, member_ranges, verify_checksums
from lungseg.errors import ShardError
from lungseg.schema import Sample

Row = dict[str, Any]


class SampleReader:
    """Reads samples of prepared data sets by position, from any thread, with a cache of decoded ones.

    cache_mib: memory for those. disk_mib: room on this machine's disk for tars that lie in a bucket. masks: whether
    they are read too.
    """

    def __init__(
        self, datasets: Sequence[PreparedDataset], cache_mib: int = 0, disk_mib: int = 0, masks: bool = True
    ) -> None:
        self.rows: list[Row] = [row for data in datasets for row in data.index.to_pylist()]
        self._folders = [data.folder for data in datasets for _ in range(data.index.num_rows)]
        self._classes = [len(data.preprocess.classes) for data in datasets for _ in range(data.index.num_rows)]
        self._cache: dict[int, Sample] = {}
        self._room = cache_mib << 20
        self._masks = masks
        self._tars = ShardCache(disk_mib)
        self._lock = threading.Lock()

    def read(self, position: int) -> Sample:
        """Read one sample.

        Raises:
            ShardError: the tar does not hold it where the index says.
            InputError: the tar cannot be read.

        """
        cached = self._cache.get(position)
        if cached is not None:
            return cached
        row = self.rows[position]
        path = storage.join(self._folders[position], f"{row['shard']}.tar")
        ranges = member_ranges(row)
        if not self._masks:
            ranges.pop("mask", None)
        members = self._tars.read(path, ranges)
        where = f"{path} ({row['image_id']})"
        verify_checksums(row, members, where)
        sample = decode_sample(members, where, self._classes[position])
        if (sample.dataset, sample.image_id) != (row["dataset"], row["image_id"]):
            raise ShardError(
                f"{path}: {sample.image_id} where the index has {row['image_id']}: run jobs/prepare.py again"
            )
        self._keep(position, sample)
        return sample

    def _keep(self, position: int, sample: Sample) -> None:
        size = sample.image.nbytes * (1 if sample.mask is None else 2)
        with self._lock:
            if position not in self._cache and size <= self._room:
                self._cache[position] = sample
                self._room -= size
