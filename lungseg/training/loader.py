"""Batches of one rank: samples assigned to ranks, read ahead by threads, and cached after decoding."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lungseg.arrays import U8
from lungseg.config import TrainSettings
from lungseg.dataset.shard_format import masks_of
from lungseg.schema import NOT_ANNOTATED, Sample
from lungseg.training.transform import Transform

_PREFETCHED_BATCHES = 3
_CPU = torch.device("cpu")


class Reader(Protocol):
    """Reads samples by position, from any thread."""

    def read(self, position: int) -> Sample:
        """Read one sample."""


@dataclass(frozen=True)
class Step:
    """One batch of one rank, as the positions of its samples.

    global_size: images in all batches of all ranks that belong to the same optimizer step. is_last_in_step: this is
    this rank's last batch of the optimizer step, after which the weights change. batch_index: index of the global
    batch (over all ranks) within the epoch. planned_rank: the rank that processes this batch when all ranks are
    present.
    """

    positions: tuple[int, ...]
    global_size: int
    is_last_in_step: bool = True
    batch_index: int = 0
    planned_rank: int = 0


@dataclass(frozen=True)
class Batch:
    """Images u8[B,1,S,S], masks u8[B,K,S,S], and their samples; the other fields are those of `Step`.

    A mask is in {0,1}, or NOT_ANNOTATED everywhere. copied: on a GPU, the event after which images and masks are
    complete; None on the CPU.
    """

    images: torch.Tensor
    masks: torch.Tensor
    samples: tuple[Sample, ...]
    global_size: int
    is_last_in_step: bool = True
    copied: torch.cuda.Event | None = None

    def wait_for_copy(self) -> None:
        """Let the GPU, not this thread, wait until images and masks are complete; do nothing on the CPU."""
        if self.copied is not None:
            torch.cuda.current_stream(self.images.device).wait_event(self.copied)

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images f32[B,1,S,S] in [0,1] and masks f32[B,K,S,S] on a device; transferred as bytes.

        Masks of classes that are not annotated are NaN: a loss that does not leave them out is not finite.
        """
        self.wait_for_copy()
        if self.copied is not None:
            for tensor in (self.images, self.masks):
                # Their memory must not be used again before this stream has read it.
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        images = self.images.to(device, non_blocking=True).float().div_(255.0)
        masks = self.masks.to(device, non_blocking=True).float()
        masks.masked_fill_(masks == NOT_ANNOTATED, torch.nan)
        return images.contiguous(memory_format=torch.channels_last), masks


def training_steps(
    count: int,
    batch_size: int,
    ranks: tuple[int, int, int],
    key: tuple[int, int],
    min_batch_size: int = 2,
    accumulate_steps: int = 1,
) -> list[Step]:
    """Shuffle `count` samples by key (seed, epoch) and return the batches of one rank; each sample is used once.

    ranks: (rank, world_size, planned_world_size). Batches are planned for planned_world_size ranks. If fewer ranks
    are present, each processes the batches of several planned ranks one after the other within the same optimizer
    step, so that every weight update uses the same images for any world_size.

    Every planned rank has the same number of batches. Batch sizes differ by at most one. Each is at least
    min_batch_size (batch norm needs two images) and at most batch_size, except where one image would be left over:
    then up to 4 for a batch_size of 2 or 3, and 2 for a batch_size of 1. accumulate_steps batches form one optimizer
    step; the last step may have fewer. Empty if there are fewer than min_batch_size samples per planned rank.
    """
    planned_world_size = ranks[2]
    if count < min_batch_size * planned_world_size:
        return []
    order = np.random.default_rng(key).permutation(count)
    total = min(-(-count // (batch_size * planned_world_size)), count // (min_batch_size * planned_world_size))
    return _steps_of_rank(np.array_split(order, total), ranks, accumulate_steps)


def global_batch_steps(
    count: int, global_batch_size: int, ranks: tuple[int, int, int], key: tuple[int, int], accumulate_steps: int = 1
) -> list[Step]:
    """Return the batches of one rank so that every step uses the same images for any number of ranks.

    As `training_steps`, but each optimizer step has global_batch_size images or slightly more (all images where there
    are fewer). So the number of steps depends neither on the ranks nor on accumulate_steps, and each rank has at least
    its equal share. Empty if there are too few samples to give each batch one.
    """
    if count < accumulate_steps * ranks[2]:
        return []
    order = np.random.default_rng(key).permutation(count)
    steps = np.array_split(order, max(1, count // global_batch_size))
    batches = [batch for step in steps for batch in np.array_split(step, accumulate_steps)]
    return _steps_of_rank(batches, ranks, accumulate_steps)


def plan_epoch(settings: TrainSettings, count: int, ranks: tuple[int, int, int], key: tuple[int, int]) -> list[Step]:
    """Return the batches of one rank in one epoch over `count` samples; ranks and key as in `training_steps`."""
    accumulate_steps = settings.optim.accumulate_steps
    if settings.loader.global_batch_size:
        return global_batch_steps(count, settings.loader.global_batch_size, ranks, key, accumulate_steps)
    return training_steps(count, settings.rank_batch_size, ranks, key, settings.min_batch_size, accumulate_steps)


def _steps_of_rank(
    global_batches: Sequence[NDArray[np.int64]], ranks: tuple[int, int, int], accumulate_steps: int
) -> list[Step]:
    """Return the batches of one rank, where every accumulate_steps global batches form an optimizer step."""
    rank, world_size, planned_world_size = ranks
    sizes = [len(positions) for positions in global_batches]
    own_ranks = range(rank, planned_world_size, world_size)
    return [
        Step(
            tuple(np.array_split(positions, planned_world_size)[planned_rank].tolist()),
            sum(sizes[i - i % accumulate_steps : i - i % accumulate_steps + accumulate_steps]),
            ((i + 1) % accumulate_steps == 0 or i + 1 == len(sizes)) and planned_rank == own_ranks[-1],
            i,
            planned_rank,
        )
        for i, positions in enumerate(global_batches)
        for planned_rank in own_ranks
    ]


def evaluation_steps(count: int, batch_size: int, ranks: tuple[int, int]) -> list[Step]:
    """Return the batches of (rank, world_size) over `count` samples in order; ranks may have unequal numbers."""
    rank, world_size = ranks
    own = range(rank, count, world_size)
    return [Step(tuple(own[start : start + batch_size]), 0) for start in range(0, len(own), batch_size)]


def load_batches(
    reader: Reader,
    steps: Sequence[Step],
    threads: int,
    transform: Transform | None = None,
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """Yield one batch per step; threads read, decode and transform the samples of the next batches in advance.

    One more thread puts them together and starts their copy to a GPU, so that the copy overlaps with computing.
    """

    def load(position: int) -> Sample:
        sample = reader.read(position)
        return transform(sample) if transform else sample

    upload = _Upload(device) if device.type == "cuda" else None
    batch_size = len(steps[0].positions) if steps else 1
    ahead = max(_PREFETCHED_BATCHES, -(-threads // batch_size))  # so that every thread has a sample to load
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="loader-batch") as batch_thread,
    ):
        pending: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                samples = [pool.submit(load, position) for position in step.positions]
                pending.append(batch_thread.submit(_collate, step, samples, upload))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            batch_thread.shutdown(wait=False, cancel_futures=True)


def _collate(step: Step, futures: list[Future[Sample]], upload: "_Upload | None") -> Batch:
    samples = tuple(future.result() for future in futures)
    pinned, classes = upload is not None, max(1 if s.masks is None else len(s.masks) for s in samples)
    images = _stack([sample.image[None] for sample in samples], pinned)
    masks = _stack([masks_of(sample, classes) for sample in samples], pinned)
    batch = Batch(images, masks, samples, step.global_size, step.is_last_in_step)
    return upload(batch) if upload else batch


def _stack(arrays: Sequence[U8], pinned: bool) -> torch.Tensor:
    """Return arrays u8[K,S,S] as u8[B,K,S,S]; only from pinned memory does a copy to a GPU overlap with other work."""
    stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=torch.uint8, pin_memory=pinned)
    np.stack(arrays, out=stacked.numpy())
    return stacked


class _Upload:
    """Copies batches to a GPU on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):
            images, masks = (tensor.to(self._device, non_blocking=True) for tensor in (batch.images, batch.masks))
            return replace(batch, images=images, masks=masks, copied=self._stream.record_event())
