"""The batches of one rank: who reads what, read ahead by threads, decoded samples kept in memory."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from lungseg import storage
from lungseg.config import AugmentSettings
from lungseg.data.augment import augment
from lungseg.data.datasets import PreparedData
from lungseg.data.folds import Row
from lungseg.data.shards import check_members, member_ranges, to_sample
from lungseg.errors import ShardError
from lungseg.schema import Sample

_AHEAD = 3  # batches read ahead of the device

Change = Callable[[Sample], Sample]


@dataclass(frozen=True)
class Step:
    """What one rank does in one step: its samples, and how many all ranks have together."""

    positions: tuple[int, ...]
    global_size: int


@dataclass(frozen=True)
class Batch:
    """images f32[B,1,S,S] in [0,1], masks f32[B,1,S,S] in {0,1}, the samples they were made of, and the global size."""

    images: torch.Tensor
    masks: torch.Tensor
    samples: tuple[Sample, ...]
    global_size: int


def training_steps(count: int, batch: int, ranks: tuple[int, int], key: tuple[int, int]) -> list[Step]:
    """Shuffle `count` samples by (seed, epoch) and deal them to (rank, world), each exactly once.

    Every rank takes equally many steps. The samples are spread over them evenly, so that each step holds two or more
    (batch norm needs them): sizes differ by one at most, within a rank and between ranks, and no rank takes more than
    `batch` in a step; 3 or 4 where a batch of 2 or 3 would leave one over. Empty with fewer than two samples a rank.
    """
    rank, world = ranks
    if count < 2 * world:
        return []
    order = np.random.default_rng(key).permutation(count)
    steps = min(-(-count // (batch * world)), count // (2 * world))
    chunks = np.array_split(order, steps)
    return [Step(tuple(np.array_split(chunk, world)[rank].tolist()), len(chunk)) for chunk in chunks]


def evaluation_steps(count: int, batch: int, ranks: tuple[int, int]) -> list[Step]:
    """Deal `count` samples in order to (rank, world), each exactly once and none twice; ranks may differ in steps."""
    rank, world = ranks
    own = range(rank, count, world)
    return [Step(tuple(own[start : start + batch]), 0) for start in range(0, len(own), batch)]


class SampleReader:
    """Reads samples of prepared data sets by position, from any thread, with a cache of decoded ones."""

    def __init__(self, datasets: Sequence[PreparedData], cache_mib: int = 0) -> None:
        self.rows: list[Row] = [row for data in datasets for row in data.index.to_pylist()]
        self._folders = [data.folder for data in datasets for _ in range(data.index.num_rows)]
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
        sample = to_sample(members, where)
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
                self._files[path] = os.open(storage.local_copy(path), os.O_RDONLY)
            return self._files[path]

    def _keep(self, position: int, sample: Sample) -> None:
        size = sample.image.nbytes * (1 if sample.mask is None else 2)
        with self._lock:
            if position not in self._cache and size <= self._room:
                self._cache[position] = sample
                self._room -= size


def augmenting(settings: AugmentSettings, seed: int, epoch: int) -> Change:
    """Make the change that training applies to each sample in this epoch."""

    def change(sample: Sample) -> Sample:
        assert sample.mask is not None, "training refuses data without masks before it starts"
        image, mask = augment(sample.image, sample.mask, settings, (seed, epoch, sample.image_id))
        return replace(sample, image=image, mask=mask)

    return change


def batches(reader: SampleReader, steps: Sequence[Step], threads: int, change: Change | None = None) -> Iterator[Batch]:
    """Yield one batch a step, read, decoded and changed by threads ahead of their use."""

    def load(position: int) -> Sample:
        sample = reader.read(position)
        return change(sample) if change else sample

    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        waiting: deque[tuple[Step, list[Future[Sample]]]] = deque()
        try:
            for step in steps:
                waiting.append((step, [pool.submit(load, position) for position in step.positions]))
                if len(waiting) > _AHEAD:
                    yield _collate(*waiting.popleft())
            while waiting:
                yield _collate(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collate(step: Step, futures: list[Future[Sample]]) -> Batch:
    samples = tuple(future.result() for future in futures)
    images = np.stack([sample.image for sample in samples])[:, None]
    masks = np.stack([np.zeros_like(s.image) if s.mask is None else s.mask for s in samples])[:, None]
    return Batch(
        torch.from_numpy(images).float().div_(255.0), torch.from_numpy(masks).float(), samples, step.global_size
    )
