"""The batches of one rank: who reads what, read ahead by threads, decoded samples kept in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from lungseg.config import AugmentSettings
from lungseg.dataset.sample_reader import SampleReader
from lungseg.schema import Sample
from lungseg.training.augment import augment

_AHEAD = 3  # batches read ahead of the device

Change = Callable[[Sample], Sample]


@dataclass(frozen=True)
class Step:
    """One batch of one rank, as the positions of its samples.

    global_size: images that all ranks have in all batches of the same optimizer step. moves: whether it is this rank's
    last batch of that step, after which the weights move. number: of the epoch's batches over all ranks, which it is a
    part of; seat: which part, the rank that has it where no rank is lost.
    """

    positions: tuple[int, ...]
    global_size: int
    moves: bool = True
    number: int = 0
    seat: int = 0


@dataclass(frozen=True)
class Batch:
    """images u8[B,1,S,S], masks u8[B,1,S,S] in {0,1}, the samples they were made of, and its Step's numbers."""

    images: torch.Tensor
    masks: torch.Tensor
    samples: tuple[Sample, ...]
    global_size: int
    moves: bool = True

    def to(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Images f32[B,1,S,S] in [0,1] and masks f32[B,1,S,S] on a device; they travel as bytes."""
        images = self.images.to(device, non_blocking=True).float().div_(255.0)
        masks = self.masks.to(device, non_blocking=True).float()
        return images.contiguous(memory_format=torch.channels_last), masks


def training_steps(
    count: int, batch: int, ranks: tuple[int, int, int], key: tuple[int, int], least: int = 2, together: int = 1
) -> list[Step]:
    """Shuffle `count` samples by (seed, epoch) and deal them to a rank, each exactly once.

    ranks: rank, world, and seats: the ranks that the run was planned with. Batches are made for as many seats; where
    fewer ranks are left, each takes the batches of several seats, one after the other, into the same step: so the
    weights move by the same images, whoever is there.

    All seats have equally many batches. The samples are spread over them evenly, so that each holds `least` or more
    (batch norm needs two): sizes differ by one at most, within a seat and between seats, and none has more than
    `batch` in one; 3 or 4 where a batch of 2 or 3 would leave one over, 2 where one of 1 would. Empty with fewer than
    `least` samples a seat. `together` batches make one step of the optimizer; the last step may have fewer.
    """
    rank, world, seats = ranks
    if count < least * seats:
        return []
    order = np.random.default_rng(key).permutation(count)
    total = min(-(-count // (batch * seats)), count // (least * seats))
    chunks = np.array_split(order, total)
    sizes = [len(chunk) for chunk in chunks]
    own = range(rank, seats, world)
    return [
        Step(
            tuple(np.array_split(chunk, seats)[seat].tolist()),
            sum(sizes[i - i % together : i - i % together + together]),
            ((i + 1) % together == 0 or i + 1 == total) and seat == own[-1],
            i,
            seat,
        )
        for i, chunk in enumerate(chunks)
        for seat in own
    ]


def evaluation_steps(count: int, batch: int, ranks: tuple[int, int]) -> list[Step]:
    """Deal `count` samples in order to (rank, world), each exactly once and none twice; ranks may differ in steps."""
    rank, world = ranks
    own = range(rank, count, world)
    return [Step(tuple(own[start : start + batch]), 0) for start in range(0, len(own), batch)]


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
    tensors = (torch.from_numpy(images), torch.from_numpy(masks))
    if torch.cuda.is_available():
        tensors = (tensors[0].pin_memory(), tensors[1].pin_memory())  # else the copy to the device is waited for
    return Batch(*tensors, samples, step.global_size, step.moves)
