"""Stages of training: read, decode and augment samples, load batches, transfer them, and train on them."""

import itertools
import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from lungseg import storage
from lungseg.arrays import Row
from lungseg.bench.device import clock_of
from lungseg.bench.timing import Stage, Work
from lungseg.config import TrainSettings
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.sample_reader import SampleReader
from lungseg.dataset.shard_cache import read_ranges
from lungseg.dataset.shard_format import Classes, decode_sample, member_ranges, verify_checksums
from lungseg.model.network import build_network
from lungseg.model.precision import AUTOCAST_DTYPES, resolve_precision
from lungseg.plurals import counted
from lungseg.schema import Sample
from lungseg.training.loader import Batch, Step, load_batches
from lungseg.training.loader_pool import LoaderPool
from lungseg.training.study_classes import study_classes
from lungseg.training.train_step import Learner
from lungseg.training.transform import EpochTransform, make_transform

LOAD, STEP = "load a batch", "train on a batch"
READ, DECODE, AUGMENT, TRANSFER = "read a sample", "decode a sample", "augment a sample", "copy to the device"

_SAMPLES = 8  # of the data that are read, decoded and augmented in each round
_LOADED_BATCHES = 4  # per call, so that starting the loader counts little
_GPU_STEPS = 5  # per call: a GPU computes while the next step is prepared
_RATE = 1e-4


def sample_stages(data: Sequence[PreparedDataset], settings: TrainSettings) -> list[Stage]:
    """Return the stages that one sample passes on one core; up to 8 samples, each used in every round."""
    wanted = study_classes(data)
    rows = [(dataset, row) for dataset in data for row in dataset.index.slice(0, _SAMPLES).to_pylist()][:_SAMPLES]
    tars = [(storage.join(dataset.folder, f"{row['shard']}.tar"), row) for dataset, row in rows]
    members = [_read(tar, row) for tar, row in tars]
    classes = [Classes(dataset.preprocess.classes, wanted) for dataset, _ in rows]
    stored = [(content, tar, own) for content, (tar, _), own in zip(members, tars, classes, strict=True)]
    samples = [decode_sample(*one) for one in stored]

    def augment_all(number: int) -> None:
        transform = make_transform(settings.augment, 0, number, classes=wanted)
        for sample in samples:
            transform(sample)

    def decode_all(_: int) -> None:
        for one in stored:
            decode_sample(*one)

    count = len(samples)
    return [
        Stage("training", READ, count, _for_each(_read, tars), "bare read", _for_each(_bare_read, tars), part_of=LOAD),
        Stage("training", DECODE, count, decode_all, "cv2.imdecode", _for_each(_bare_decode, members), part_of=LOAD),
        Stage("training", AUGMENT, count, augment_all, "copy in memory", _for_each(_copy, samples), part_of=LOAD),
    ]


def loader_stage(data: Sequence[PreparedDataset], settings: TrainSettings, workers: int) -> Stage:
    """Return the stage of a loader; its limit: the same samples one by one, divided by the workers.

    Workers are processes if the settings ask for some, else threads. The processes end with this one.
    """
    reader = SampleReader(data, 0, settings.loader.disk_mib, classes=study_classes(data))
    numbers = itertools.cycle(range(len(reader.rows)))
    size = settings.rank_batch_size
    steps = [Step(tuple(itertools.islice(numbers, size)), size) for _ in range(_LOADED_BATCHES)]
    in_processes = settings.loader.process_count > 0
    pool = LoaderPool(workers, reader, data[0].preprocess.size, settings.loader.disk_mib) if in_processes else None

    def load(number: int) -> None:
        transform = EpochTransform(settings.augment, 0, number, classes=reader.classes)
        if pool is None:
            batches = load_batches(reader, steps, workers, make_transform(*transform))
        else:
            batches = load_batches(pool.samples(transform), steps, workers)
        for _ in batches:
            pass

    def one_by_one(number: int) -> None:
        transform = make_transform(settings.augment, 0, number, classes=reader.classes)
        for step in steps:
            for position in step.positions:
                transform(reader.read(position))

    images = size * _LOADED_BATCHES
    name = counted(workers, "process" if in_processes else "thread", "processes" if in_processes else "")
    return Stage("training", f"{LOAD} ({name})", images, load, "its samples / workers", one_by_one, workers)


def device_stages(size: int, settings: TrainSettings, device: torch.device) -> list[Stage]:
    """Return the stages of one batch on the device: its transfer, and a training step."""
    batch = make_batch(settings.rank_batch_size, size, device)
    learner = Learner(build_network(settings.model, pretrained=False), device, settings)
    calls = _GPU_STEPS if device.type == "cuda" else 1
    clock = clock_of(device)
    images = calls * len(batch.images)
    transfer = Stage(
        *("training", TRANSFER, images, _repeat(calls, lambda: batch.to(device))),
        *("copy as bytes", _repeat(calls, lambda: _copy_bytes(batch, device))),
        clock=clock,
        part_of=STEP,
    )
    step = Stage(
        *("training", STEP, images, _repeat(calls, lambda: learner(batch, _RATE))),
        *("ready tensors", _repeat(calls, _bare_step(settings, batch, device))),
        clock=clock,
    )
    return [transfer, step]


def make_batch(count: int, size: int, device: torch.device, world_size: int = 1) -> Batch:
    """Return a batch of random images and masks, in pinned memory where the device is a GPU."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    masks = (images > 127).to(torch.uint8)
    if device.type == "cuda":
        images, masks = images.pin_memory(), masks.pin_memory()
    return Batch(images, masks, (), count * world_size)


def _for_each(work: Callable[..., object], values: Sequence[object]) -> Work:
    def run(_: int) -> None:
        for value in values:
            work(*value) if isinstance(value, tuple) else work(value)

    return run


def _repeat(calls: int, work: Callable[[], object]) -> Work:
    def run(_: int) -> None:
        for _call in range(calls):
            work()

    return run


def _read(tar: str, row: Row) -> dict[str, bytes]:
    members = read_ranges(tar, member_ranges(row))
    verify_checksums(row, members, tar)
    return members


def _bare_read(tar: str, row: Row) -> bytes:
    ranges = member_ranges(row).values()
    start = min(offset for offset, _ in ranges)
    size = max(offset + length for offset, length in ranges) - start
    if "://" in tar:
        return storage.read_range(tar, start, size)
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)


def _bare_decode(members: dict[str, bytes]) -> None:
    for name in ("image", "mask"):
        cv2.imdecode(np.frombuffer(members[name], np.uint8), cv2.IMREAD_UNCHANGED)


def _copy(sample: Sample) -> None:
    assert sample.masks is not None, "data for training has masks"
    sample.image.copy(), sample.masks.copy()


def _copy_bytes(batch: Batch, device: torch.device) -> list[Tensor]:
    return [tensor.to(device, non_blocking=True, copy=True) for tensor in (batch.images, batch.masks)]


def _bare_step(settings: TrainSettings, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Return forward and backward pass of the network on tensors that are ready on the device."""
    network = build_network(settings.model, pretrained=False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    images, _ = batch.to(device)
    dtype = AUTOCAST_DTYPES.get(resolve_precision(settings.compute.precision, device))

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = network(images)
        logits.float().mean().backward()
        network.zero_grad(set_to_none=True)

    return step
