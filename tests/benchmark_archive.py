"""Time and memory of the driver of jobs/prepare.py for a million images: `python tests/benchmark_archive.py`.

Creates empty image and mask files (kept in --work for later runs). Then calls the driver's steps except Ray: list,
plan, serialise the tasks, merge their results, audit. The results are synthetic, as of images that all differ. Prints
the seconds and the peak resident memory of each step as JSON.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from benchmark_prepare import peak_kib

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog, shard_format
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.ingest import record_checks, sources
from lungseg.prepare import dataset_writer, shard_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards, planned_ids
from lungseg.schema import Record

A_FOLDER = 1000


def lay_out(folder: Path, count: int) -> None:
    """Create `count` empty image and mask files; existing folders are not changed."""
    for kind in ("images", "masks"):
        for first in range(0, count, A_FOLDER):
            inside = folder / kind / f"{first // A_FOLDER:05d}"
            if not inside.exists():
                inside.mkdir(parents=True)
                for number in range(first, min(first + A_FOLDER, count)):
                    (inside / f"study-{number:08d}.png").touch()
        print(f"laid out {count} {kind}", file=sys.stderr)


def make_up(plan: ShardPlan, chance: np.random.Generator) -> None:
    """Write the results of a shard of distinct images of 1024 x 1024 px, and an empty tar."""
    records, rows = [], []
    for planned in plan.records:
        record = made_up(planned, chance)
        sizes = chance.integers(3_000, 150_000, (3, 3)).tolist()
        places = {
            name: (offset, size, crc)
            for name, (offset, size, crc) in zip(shard_format.MEMBER_SUFFIXES, sizes, strict=True)
        }
        records.append(record.to_dict())
        rows.append(shard_writer._index_row(record, plan.name, places))
    shard_writer._write(plan, b"", "", records, rows)


def made_up(record: Record, chance: np.random.Generator) -> Record:
    """Complete a record with synthetic values."""
    looks = {"pixel_digest": chance.bytes(16).hex(), "phash": chance.bytes(32).hex()}
    return replace(record, **looks, height=1024, width=1024, mask_area=float(chance.normal(0.25, 0.01)))


class Stages:
    """Seconds and peak resident memory, MiB, by stage."""

    def __init__(self) -> None:
        self.costs: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body of the `with` statement."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.costs[name] = {"seconds": round(seconds, 1), "peak_mib": round(peak_kib(os.getpid()) / 1024)}
        print(f"{name}: {self.costs[name]}", file=sys.stderr)


def drive(archive: Path, out: str) -> dict[str, dict[str, float]]:
    """Run the steps of the driver of jobs/prepare.py in the same order."""
    stages = Stages()
    with stages.stage("list"):
        records = sources.discover(str(archive), "archive")
        records = record_checks.reject_duplicate_ids(records, planned_ids(records, out))
    with stages.stage("plan"):
        plans = plan_shards(records, out, PreprocessSettings())
        del records
        dataset_writer.begin_datasets(plans)
    with stages.stage("tasks"):
        for plan in plans:
            plan.to_json()
    chance = np.random.default_rng(0)
    for plan in plans:
        make_up(plan, chance)
    plans = [replace(plan, records=()) for plan in plans]
    with stages.stage("join"):
        dataset_writer.finish_dataset(plans)
        pa.default_memory_pool().release_unused()
    with stages.stage("audit"):
        audit_datasets([catalog.open_dataset(folder) for folder in catalog.list_datasets(out)])
    return stages.costs


def main() -> None:
    """Create the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=1_000_000)
    arguments = parser.parse_args()
    archive = arguments.work / f"empty-{arguments.images}"
    lay_out(archive, arguments.images)
    out = tempfile.mkdtemp(dir=arguments.work)
    try:
        costs = drive(archive, storage.resolve(out))
    finally:
        shutil.rmtree(out)
    print(json.dumps({"images": arguments.images, **costs}, indent=1))


if __name__ == "__main__":
    main()
