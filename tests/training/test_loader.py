"""Batches of one rank: each sample once, equal steps, independent of threads and cache."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lungseg.config import AugmentSettings
from lungseg.dataset import catalog, sample_reader as reading
from lungseg.dataset.sample_cache import SampleCache
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import ShardError
from lungseg.schema import NOT_ANNOTATED, Sample
from lungseg.training import loader
from lungseg.training.augment import augment
from lungseg.training.loader import Batch, Step
from lungseg.training.transform import make_transform

COUNTS = st.integers(0, 400)
BATCHES = st.integers(2, 17)
WORLDS = st.integers(1, 4)


@pytest.fixture
def reader(prepared: Path) -> SampleReader:
    """Reads eight samples without a cache: five of north, then three of south."""
    return SampleReader([catalog.open_dataset(folder) for folder in catalog.find_datasets([str(prepared)])])


def cached(prepared: Path) -> SampleReader:
    return SampleReader(
        [catalog.open_dataset(folder) for folder in catalog.find_datasets([str(prepared)])], cache_mib=1
    )


def dealt(count: int, batch: int, world: int, key: tuple[int, int] = (0, 0)) -> list[list[Step]]:
    return [loader.training_steps(count, batch, (rank, world, world), key) for rank in range(world)]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


# Training steps


@settings(max_examples=400)
@given(COUNTS, BATCHES, WORLDS, st.integers(0, 99))
def test_ranks_get_each_sample_once_in_equal_batches(count: int, batch: int, world: int, epoch: int) -> None:
    ranks = dealt(count, batch, world, (0, epoch))
    assert len({len(steps) for steps in ranks}) == 1
    if count < 2 * world:
        assert ranks == [[]] * world
        return
    everything = [position for steps in ranks for step in steps for position in step.positions]
    assert sorted(everything) == list(range(count))
    sizes = [len(step.positions) for steps in ranks for step in steps]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch, 4)
    for step, *others in zip(*ranks, strict=True):
        global_size = len(step.positions) + sum(len(other.positions) for other in others)
        assert {step.global_size, *(other.global_size for other in others)} == {global_size}


def test_no_rank_ever_gets_a_batch_of_one_image() -> None:
    """Checks all small cases: batch norm fails on a batch of one image."""
    for count, batch, world in itertools.product(range(2, 70), range(2, 9), range(1, 5)):
        sizes = [len(step.positions) for steps in dealt(count, batch, world) for step in steps]
        assert all(2 <= size <= max(batch, 4) for size in sizes), (count, batch, world)
        if count % world == 0 and batch > 3:
            assert all(size <= batch for size in sizes), (count, batch, world)


@given(st.integers(8, 400), st.integers(4, 17), WORLDS)
def test_batches_are_as_few_and_as_large_as_allowed(count: int, batch: int, world: int) -> None:
    steps = dealt(count, batch, world)
    assert all(len(step.positions) <= batch for own in steps for step in own)
    assert len(steps[0]) == -(-count // (batch * world))


def test_each_epoch_has_its_own_reproducible_order() -> None:
    orders = [
        [position for step in loader.training_steps(100, 8, (0, 1, 1), key) for position in step.positions]
        for key in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] != sorted(orders[0])


def test_samples_of_a_step_are_independent_of_world_size() -> None:
    single = loader.training_steps(96, 8, (0, 1, 1), (0, 0))
    multiple = dealt(96, 2, 4)
    merged = [sorted(p for step in steps for p in step.positions) for steps in zip(*multiple, strict=True)]
    assert [sorted(step.positions) for step in single] == merged


@given(COUNTS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3))
def test_fewer_ranks_process_the_same_batches_per_step(
    count: int, batch: int, planned_world_size: int, lost: int, together: int
) -> None:
    world = max(1, planned_world_size - lost)

    def deal(world: int) -> list[list[loader.Step]]:
        return [
            loader.training_steps(count, batch, (i, world, planned_world_size), (0, 0), 2, together)
            for i in range(world)
        ]

    def keys(steps: list[Step]) -> list[tuple[int, int]]:
        return [(step.batch_index, step.planned_rank) for step in steps]

    def contents(ranks: list[list[Step]]) -> dict[tuple[int, int], tuple[tuple[int, ...], int]]:
        return {key: (s.positions, s.global_size) for steps in ranks for key, s in zip(keys(steps), steps, strict=True)}

    planned, fewer = deal(planned_world_size), deal(world)
    assert contents(fewer) == contents(planned)
    ends = [[step.batch_index for step in steps if step.is_last_in_step] for steps in (*planned, *fewer)]
    assert all(own == ends[0] for own in ends)
    for steps in fewer:
        assert keys(steps) == sorted(keys(steps))
        assert all(b.batch_index > a.batch_index for a, b in itertools.pairwise(steps) if a.is_last_in_step)


@given(COUNTS, st.integers(1, 9), WORLDS, st.integers(1, 2), st.integers(1, 5))
def test_accumulated_batches_form_one_optimizer_step(
    count: int, batch: int, world: int, least: int, together: int
) -> None:
    ranks = [
        loader.training_steps(count, batch, (rank, world, world), (0, 0), least, together) for rank in range(world)
    ]
    alone = [loader.training_steps(count, batch, (rank, world, world), (0, 0), least) for rank in range(world)]
    assert [[step.positions for step in steps] for steps in ranks] == [[s.positions for s in own] for own in alone]
    for steps in ranks:
        assert [(step.global_size, step.is_last_in_step) for step in steps] == [
            (s.global_size, s.is_last_in_step) for s in ranks[0]
        ]
        assert [step.is_last_in_step for step in steps[:-1]] == [(i + 1) % together == 0 for i in range(len(steps) - 1)]
        assert all(step.is_last_in_step for step in steps[-1:])
    sizes = [sum(len(steps[i].positions) for steps in ranks) for i in range(len(ranks[0]))]
    for start in range(0, len(sizes), together):
        group = slice(start, start + together)
        assert {step.global_size for step in ranks[0][group]} == {sum(sizes[group])}
    assert sum(step.global_size for step in ranks[0] if step.is_last_in_step) == sum(sizes)


@given(st.integers(1, 60), st.integers(1, 4), WORLDS)
def test_min_batch_size_1_gives_every_rank_an_image(count: int, batch: int, world: int) -> None:
    ranks = [loader.training_steps(count, batch, (rank, world, world), (0, 0), 1) for rank in range(world)]
    if count < world:
        assert ranks == [[]] * world
        return
    everything = [position for steps in ranks for step in steps for position in step.positions]
    assert sorted(everything) == list(range(count))
    assert all(1 <= len(step.positions) <= max(batch, 2) for steps in ranks for step in steps)
    if world == 1:
        assert max(len(step.positions) for step in ranks[0]) <= batch


# Global batches


@given(st.integers(1, 90), st.integers(1, 3), st.integers(1, 4), WORLDS)
def test_a_global_batch_has_the_same_images_on_any_ranks(count: int, share: int, together: int, world: int) -> None:
    total = share * together * world

    def images(world: int, together: int) -> list[list[int]]:
        ranks = [loader.global_batch_steps(count, total, (i, world, world), (3, 1), together) for i in range(world)]
        steps: list[list[int]] = [[]]
        for batches in zip(*ranks, strict=True):
            steps[-1] += [position for step in batches for position in step.positions]
            assert min(len(step.positions) for step in batches) >= 1
            if batches[0].is_last_in_step:
                assert {step.global_size for step in batches} == {len(steps[-1])}
                steps.append([])
        return [sorted(step) for step in steps]

    if count < together * world:
        assert images(world, together) == [[]]
        return
    alone = images(1, 1)
    assert images(world, together) == alone
    assert sorted(position for step in alone for position in step) == list(range(count))
    assert len(alone) - 1 == max(1, count // total)


@given(st.integers(8, 300), st.integers(1, 4), st.integers(1, 4), WORLDS)
def test_each_rank_has_at_least_its_share(extra: int, share: int, together: int, world: int) -> None:
    total = share * together * world
    steps = loader.global_batch_steps(total + extra, total, (world - 1, world, world), (0, 0), together)
    assert min(len(step.positions) for step in steps) >= share


# Evaluation steps


@given(st.integers(0, 200), st.integers(1, 17), st.integers(1, 5))
def test_evaluation_uses_each_sample_once_in_order(count: int, batch: int, world: int) -> None:
    ranks = [loader.evaluation_steps(count, batch, (rank, world)) for rank in range(world)]
    everything = [position for steps in ranks for step in steps for position in step.positions]
    assert sorted(everything) == list(range(count))
    assert all(1 <= len(step.positions) <= batch for steps in ranks for step in steps)
    for steps in ranks:
        order = [position for step in steps for position in step.positions]
        assert order == sorted(order)
    shares = [sum(len(step.positions) for step in steps) for steps in ranks]
    assert max(shares) - min(shares) <= 1


# Samples


def test_positions_follow_the_order_of_datasets(reader: SampleReader) -> None:
    samples = [reader.read(position) for position in range(8)]
    assert [(sample.dataset, sample.image_id) for sample in samples] == [
        *(("north", f"north_{number:02d}") for number in range(5)),
        *(("south", f"south_{number:02d}") for number in range(3)),
    ]
    assert [row["image_id"] for row in reader.rows] == [sample.image_id for sample in samples]
    assert all(sample.image.shape == (64, 64) and sample.masks is not None and sample.masks.any() for sample in samples)


def test_reads_without_a_cache_decode_again(reader: SampleReader) -> None:
    first, again = reader.read(0), reader.read(0)
    assert first is not again
    np.testing.assert_array_equal(first.image, again.image)


def test_cached_sample_is_decoded_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cached(prepared)
    first = opened.read(3)
    monkeypatch.setattr(reading, "decode_sample", None)
    assert opened.read(3) is first
    with pytest.raises(TypeError):
        opened.read(4)


def test_cache_stays_within_its_limit(prepared: Path) -> None:
    samples = [cached(prepared).read(position) for position in range(5)]
    cache = SampleCache(2 * 2 * 64 * 64 + 100)  # two images of 64 px with their masks
    assert [cache.add(position, sample, 1) is sample for position, sample in enumerate(samples)] == [
        *(False, False),
        *(True, True, True),
    ]
    for position in range(2):
        stored = cache.get(position)
        assert stored is not None
        np.testing.assert_array_equal(stored.image, samples[position].image)
        np.testing.assert_array_equal(stored.masks, samples[position].masks)  # type: ignore[arg-type]
    assert cache.get(2) is None


def test_a_sample_without_masks_is_cached_with_masks_that_are_not_annotated(prepared: Path) -> None:
    sample = replace(cached(prepared).read(0), masks=None)
    stored = SampleCache(1 << 20).add(0, sample, 2)
    assert stored.masks is not None
    assert stored.masks.shape == (2, 64, 64)
    assert (stored.masks == NOT_ANNOTATED).all()
    np.testing.assert_array_equal(stored.image, sample.image)


# Batches


def equal(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.masks, b.masks)
        and [sample.image_id for sample in a.samples] == [sample.image_id for sample in b.samples]
        and (a.global_size, a.is_last_in_step) == (b.global_size, b.is_last_in_step)
        for a, b in zip(first, second, strict=True)
    )


STEPS = [Step((5, 0, 3), 6, False), Step((1,), 2), Step((7, 2), 4), Step((4, 6), 4), Step((0, 7), 4), Step((2, 3), 4)]


def test_batch_contains_its_samples(reader: SampleReader) -> None:
    batches = list(loader.load_batches(reader, STEPS, threads=2))
    assert len(batches) == len(STEPS)
    for batch, step in zip(batches, STEPS, strict=True):
        size = len(step.positions)
        assert batch.images.shape == batch.masks.shape == (size, 1, 64, 64)
        assert batch.images.dtype == batch.masks.dtype == torch.uint8  # a quarter of the size of float32
        assert (batch.global_size, batch.is_last_in_step) == (step.global_size, step.is_last_in_step)
        images, masks = batch.to(torch.device("cpu"))
        assert images.dtype == masks.dtype == torch.float32
        for i, position in enumerate(step.positions):
            sample = reader.read(position)
            assert batch.samples[i].image_id == sample.image_id
            np.testing.assert_array_equal(batch.images[i, 0].numpy(), sample.image)
            np.testing.assert_allclose(images[i, 0].numpy() * 255.0, sample.image, atol=1e-4)
            np.testing.assert_array_equal(masks[i].numpy(), sample.masks)
        assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0
        assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_batch_can_be_moved_twice(reader: SampleReader) -> None:
    (batch,) = loader.load_batches(reader, [Step((3, 1), 2)], 1)
    first, again = batch.to(torch.device("cpu")), batch.to(torch.device("cpu"))
    assert all(torch.equal(tensor, other) for tensor, other in zip(first, again, strict=True))


@pytest.mark.parametrize("augmented", [False, True])
def test_threads_and_cache_change_nothing(augmented: bool, prepared: Path, reader: SampleReader) -> None:
    change = make_transform(AugmentSettings(rotate_deg=20.0, gamma=0.3, flip=0.5), 0, 1) if augmented else None
    plain = list(loader.load_batches(reader, STEPS, 1, change))
    opened = cached(prepared)
    for threads in (1, 4, 4):
        assert equal(list(loader.load_batches(opened, STEPS, threads, change)), plain)
    assert equal(list(loader.load_batches(reader, STEPS, 4, change)), plain)


def test_half_size_samples_are_reduced_before_augmentation(reader: SampleReader) -> None:
    sample = reader.read(3)
    assert sample.masks is not None
    halved = make_transform(AugmentSettings(), 0, 1, halves=True)(sample)
    blocks = sample.image.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(halved.image - blocks).max() <= 0.5
    assert halved.masks is not None
    np.testing.assert_array_equal(halved.masks[0], sample.masks[0].reshape(32, 2, 32, 2).sum(axis=(1, 3)) >= 2)
    (batch,) = loader.load_batches(
        reader,
        [Step((3, 1), 2)],
        1,
        make_transform(AugmentSettings(rotate_deg=20.0, opacity=1.0), 0, 1, halves=True),
    )
    assert batch.images.shape == batch.masks.shape == (2, 1, 32, 32)


def test_cache_keeps_samples_without_augmentation(prepared: Path) -> None:
    opened = cached(prepared)
    chosen = AugmentSettings(rotate_deg=20.0, flip=1.0)
    before = opened.read(2)
    image = before.image.copy()
    (batch,) = loader.load_batches(opened, [Step((2,), 1)], 1, make_transform(chosen, 7, 3))
    assert before.masks is not None
    expected, mask = augment(before.image, before.masks, chosen, (7, 3, before.image_id))
    np.testing.assert_array_equal(batch.samples[0].image, expected)
    np.testing.assert_array_equal(batch.masks[0].numpy(), mask)
    assert batch.samples[0].geometry == before.geometry
    np.testing.assert_array_equal(opened.read(2).image, image)


def test_writing_into_a_batch_does_not_reach_the_cache(prepared: Path) -> None:
    opened = cached(prepared)
    image = opened.read(0).image.copy()
    (batch,) = loader.load_batches(opened, [Step((0,), 1)], 1)
    batch.images.zero_()
    batch.masks.fill_(7)
    np.testing.assert_array_equal(opened.read(0).image, image)


def test_sample_without_masks_is_not_annotated(reader: SampleReader) -> None:
    bare: Callable[[Sample], Sample] = lambda sample: replace(sample, masks=None)  # noqa: E731
    (batch,) = loader.load_batches(reader, [Step((0, 1), 2)], 1, bare)
    assert (batch.masks == NOT_ANNOTATED).all()
    assert [sample.masks for sample in batch.samples] == [None, None]


def test_no_steps_are_no_batches(reader: SampleReader) -> None:
    assert list(loader.load_batches(reader, [], 2)) == []
    assert loader_threads() == []


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("bad", [0, 7])
def test_loader_thread_errors_are_raised(bad: int, threads: int, reader: SampleReader) -> None:
    def fail(sample: Sample) -> Sample:
        if sample.image_id == reader.rows[bad]["image_id"]:
            raise ShardError("truncated")
        return sample

    steps = [Step((position,), 1) for position in range(8)]
    batches = loader.load_batches(reader, steps, threads, fail)
    image_ids = [next(batches).samples[0].image_id for _ in range(bad)]
    with pytest.raises(ShardError, match="truncated"):
        next(batches)
    assert image_ids == [row["image_id"] for row in reader.rows[:bad]]
    assert loader_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_batches_may_be_left_early(taken: int, reader: SampleReader) -> None:
    steps = [Step((number % 8,), 1) for number in range(200)]
    read: list[str] = []

    def note(sample: Sample) -> Sample:
        read.append(sample.image_id)
        return sample

    batches = loader.load_batches(reader, steps, 2, note)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert loader_threads() == []
    assert len(read) <= taken + 4 + 2


def test_prefetched_samples_are_cancelled_when_closed(reader: SampleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    read: list[str] = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go_on.set()
            super().shutdown(wait=wait)

    def stop_after_one_batch(sample: Sample) -> Sample:
        read.append(sample.image_id)
        assert len(read) <= 8 or go_on.wait(60)
        return sample

    monkeypatch.setattr(loader, "ThreadPoolExecutor", Pool)
    batches = loader.load_batches(reader, [Step(tuple(range(8)), 8)] * 20, 1, stop_after_one_batch)
    next(batches)
    batches.close()
    assert len(read) <= 9


def test_reading_runs_only_a_little_ahead(reader: SampleReader) -> None:
    """Otherwise a slow device would fill the memory with a full epoch."""
    requested: list[int] = []

    class Noting(list[Step]):
        def __iter__(self) -> Iterator[Step]:
            for number, step in enumerate(super().__iter__()):
                requested.append(number)
                yield step

    batches = loader.load_batches(reader, Noting(Step((number % 8,), 1) for number in range(100)), 2)
    next(batches)
    assert len(requested) <= 5
    batches.close()
