"""Processes that load training samples: the same batches for any number, clear errors, and no orphans."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from lungseg.config import AugmentSettings
from lungseg.config.recipes import TRAIN, TrainSettings
from lungseg.dataset import catalog
from lungseg.dataset.sample_reader import SampleReader, SampleSource
from lungseg.errors import ResourceError, SettingsError, ShardError
from lungseg.schema import NOT_ANNOTATED
from lungseg.training.loader import Batch, Step, load_batches
from lungseg.training.loader_pool import LoaderPool
from lungseg.training.transform import EpochTransform, make_transform
from tests.pipelines.processes import title

SIDE = 64  # px, of the prepared samples
STEPS = [Step((5, 0, 3), 6, False), Step((1,), 2), Step((7, 2), 4), Step((4, 6), 4)]
RELEASE = TRAIN["release"][1]
assert isinstance(RELEASE, TrainSettings)
FIRST, SECOND = EpochTransform(RELEASE.augment, 3, 0, halves=True), EpochTransform(RELEASE.augment, 3, 1)


def a_reader(prepared: Path, cache_mib: int = 0) -> SampleReader:
    return SampleReader([catalog.open_dataset(path) for path in catalog.find_datasets([str(prepared)])], cache_mib)


@contextlib.contextmanager
def a_pool(reader: SampleReader, count: int = 1) -> Iterator[LoaderPool]:
    with contextlib.closing(LoaderPool(count, reader, SIDE, disk_mib=0)) as pool:
        yield pool


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "loader_process" in title(child)]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.masks, b.masks)
        and [sample.geometry for sample in a.samples] == [sample.geometry for sample in b.samples]
        and (a.global_size, a.is_last_in_step) == (b.global_size, b.is_last_in_step)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(("count", "cache_mib"), [(1, 1), (3, 0)])
def test_processes_and_cache_change_no_batch(count: int, cache_mib: int, prepared: Path) -> None:
    reader = a_reader(prepared, cache_mib)
    with a_pool(reader, count) as pool:
        for transform in (FIRST, SECOND, SECOND):
            plain = list(load_batches(a_reader(prepared), STEPS, 1, make_transform(*transform)))
            assert equal(list(load_batches(pool.samples(transform), STEPS, count)), plain)
        for position in range(8 if cache_mib else 0):
            cached = reader.cache.get(position)
            assert cached is not None
            assert (cached.image == a_reader(prepared).read(position).image).all()
    assert children() == []


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_a_sample_without_masks_gives_masks_that_are_not_annotated(
    cache_mib: int, own_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_transform(*SECOND)(replace(a_reader(own_prepared).read(1), masks=None))
    source = SampleReader.source

    def without_mask(reader: SampleReader, position: int) -> SampleSource:
        place = source(reader, position)
        return replace(place, row={**place.row, "mask_size": 0})

    monkeypatch.setattr(SampleReader, "source", without_mask)
    with a_pool(a_reader(own_prepared, cache_mib)) as pool:
        for _ in range(2):
            loaded = pool.load(1, SECOND)
            assert plain.masks is not None
            assert loaded.masks is not None
            assert (loaded.masks == NOT_ANNOTATED).all()
            assert (plain.masks == NOT_ANNOTATED).all()
            assert (loaded.image == plain.image).all()


def test_a_cached_sample_needs_no_tar(own_prepared: Path) -> None:
    reader = a_reader(own_prepared, 1)
    with a_pool(reader) as pool:
        first = list(load_batches(pool.samples(SECOND), STEPS, 1))
        for tar in own_prepared.rglob("*.tar"):
            tar.unlink()
        assert equal(list(load_batches(pool.samples(SECOND), STEPS, 1)), first)


def test_errors_of_a_process_are_those_of_a_thread(own_prepared: Path) -> None:
    for tar in own_prepared.rglob("north*.tar"):
        tar.write_bytes(b"x" * tar.stat().st_size)
    with a_pool(a_reader(own_prepared)) as pool:
        with pytest.raises(ShardError, match=r"north_00: the image is damaged .* run lungseg prepare again"):
            pool.load(0, FIRST)
        unknown = EpochTransform(AugmentSettings(custom="nowhere:Nothing"), 0, 0)
        with pytest.raises(SettingsError, match="no module nowhere"):
            pool.load(5, unknown)
        assert pool.load(5, FIRST).image.shape == (SIDE // 2, SIDE // 2)  # it still answers


def test_a_killed_process_is_a_clear_error(prepared: Path) -> None:
    with a_pool(a_reader(prepared)) as pool:
        pool.load(0, FIRST)
        children()[0].kill()
        with pytest.raises(ResourceError, match=r"was killed \(SIGKILL\), for lack of memory .* --loader\.processes"):
            list(load_batches(pool.samples(FIRST), STEPS, 1))
    assert children() == []


OWNER = """
import sys, time
from lungseg.dataset import catalog
from lungseg.dataset.sample_reader import SampleReader, SampleSource
from lungseg.training.loader_pool import LoaderPool
pool = LoaderPool(2, SampleReader([catalog.open_dataset(sys.argv[1])]), 64, 0)
print("started", flush=True)
time.sleep(600)
"""


def test_processes_end_when_their_owner_is_killed(prepared: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(prepared / "north")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        orphans = psutil.Process(owner.pid).children()
        owner.send_signal(signal.SIGKILL)
    assert len(orphans) == 2
    deadline = time.monotonic() + 60
    while any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.05)
