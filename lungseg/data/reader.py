"""Samples of prepared data sets, read from their tars by position."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lungseg import storage
from lungseg.data.datasets import PreparedData
from lungseg.data.shards import check_members, member_ranges, to_sample
from lungseg.errors import ShardError
from lungseg.schema import Sample

Row = dict[str, Any]


class SampleReader:
    """Reads samples of prepared data sets by position, from any thread, with a cache of decoded ones."""

    def __init__(self, datasets: Sequence[PreparedData], cache_mib: int = 0) -> None:
        self.rows: list[Row] = [row for data in datasets for row in data.index.to_pylist()]
        self._folders = [data.folder for data in datasets for _ in range(data.index.num_rows)]
        self._classes = [len(data.preprocess.classes) for data in datasets for _ in range(data.index.num_rows)]
        self._cache: dict[int, Sample] = {}
        self._room = cache_mib << 20
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, position: int) -> Sample:
        """Read one sample.

        Raises:
            ShardError: the tar does not hold it where the index says.

        """
        cached = self._cache.get(position)
        if cached is not None:
            return cached
        row = self.rows[position]
        path = storage.join(self._folders[position], f"{row['shard']}.tar")
        file = self._open(path)
        members = {name: os.pread(file, size, offset) for name, (offset, size) in member_ranges(row).items()}
        where = f"{path} ({row['image_id']})"
        check_members(row, members, where)
        sample = to_sample(members, where, self._classes[position])
        if (sample.dataset, sample.image_id) != (row["dataset"], row["image_id"]):
            raise ShardError(
                f"{path}: {sample.image_id} where the index has {row['image_id']}: run jobs/prepare.py again"
            )
        self._keep(position, sample)
        return sample

    def close(self) -> None:
        """Close the tars; the cache stays."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _open(self, path: str) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(_local_copy(path), os.O_RDONLY)
            return self._files[path]

    def _keep(self, position: int, sample: Sample) -> None:
        size = sample.image.nbytes * (1 if sample.mask is None else 2)
        with self._lock:
            if position not in self._cache and size <= self._room:
                self._cache[position] = sample
                self._room -= size


def _local_copy(path: str) -> str:
    """Name a local file with a file's content: itself, or a copy that is fetched once into ~/.cache/lungseg."""
    if "://" not in path:
        return path
    copy = str(Path.home() / ".cache" / "lungseg" / storage.digest([path, *storage.stat(path)]))
    if not storage.exists(copy):
        storage.write_bytes(copy, storage.read_bytes(path))
    return copy
