"""Time and memory of drivers and ranks for millions of images: `python tests/benchmark_archive.py`.

prepare: creates empty image and mask files (kept in --work for later runs), then calls the driver's steps except Ray:
list, plan, serialise the tasks, merge their results, audit. train: opens a made-up dataset (kept in --work), divides
it, writes the training index, and opens that as a rank does. infer: plans an inference over the same dataset. listing,
csv: the same over a Parquet or CSV listing of files that do not exist. folder: the same over a folder of empty files.
Rows and results are made up, as of images that nearly all differ; the code is the real one. Each of these runs in a
process of its own. Prints the seconds and the peak memory of each step as JSON: resident, and without mapped files.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from benchmark_prepare import peak_kib
from made_up_dataset import write_dataset

from lungseg import storage
from lungseg.config import InferSettings, PreprocessSettings, TrainSettings
from lungseg.dataset import catalog, fold_table, folds, shard_format, training_index
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.dataset.sample_reader import SampleReader
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
    """Seconds and peak memory, MiB, by stage."""

    def __init__(self) -> None:
        self.costs: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body of the `with` statement."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        began, cpu = time.monotonic(), time.process_time()
        with _peak_of_own_memory() as own:
            yield
        seconds = time.monotonic() - began
        self.costs[name] = {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_mib": round(peak_kib(os.getpid()) / 1024),
            "peak_without_mapped_mib": round(own[0] / 1024),
        }
        print(f"{name}: {self.costs[name]}", file=sys.stderr)


@contextmanager
def _peak_of_own_memory() -> Iterator[list[int]]:
    """Sample the memory of this process that is not a mapped file, KiB, every 50 ms."""
    peak, ended = [0], threading.Event()

    def sample() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))
            if ended.wait(0.05):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


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


def prepare(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Run the driver of jobs/prepare.py."""
    archive = work / f"empty-{images}"
    lay_out(archive, images)
    return drive(archive, out)


def train_driver(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Run the steps of the driver of jobs/train.py in the same order; links are made up instead of audited."""
    from lungseg.study import study_plan
    from lungseg.training.study_data import open_training_data

    stages, settings = Stages(), TrainSettings()
    links = [(f"made-up/study-{n:08d}", f"made-up/study-{n + 7:08d}") for n in range(0, images - 7, 100)]
    with stages.stage("open"):
        data = open_training_data([str(work / str(images) / "made-up")], settings)
    with stages.stage("groups and folds"):
        index = study_plan.index_of(settings, data, links)
        del data
    with stages.stage("checks of all runs"):
        study_plan.require_feasible(settings, index, study_plan.plan_runs(settings, index.datasets))
    with stages.stage("folds.csv"):
        fold_table.write_fold_files(out, index.rows)
    with stages.stage("write the index"):
        training_index.write_index(f"{out}/index.arrow", index)
    return stages.costs


def train_rank(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Do what one of eight ranks does: open the index, split, plan an epoch, read rows, list the trained images."""
    import torch  # noqa: F401  # part of a rank's memory

    from lungseg.training.loader import plan_epoch
    from lungseg.training.run_state import trained_on_bytes

    stages, settings = Stages(), TrainSettings()
    with stages.stage("open the index and split"):
        index = training_index.open_index(f"{out}/index.arrow")
        reader = SampleReader(index.datasets)
        plan = folds.RunPlan("pooled", ("made-up",), 0, settings.folds, settings.split_seed)
        split = folds.split(index.rows, plan)
    with stages.stage("plan an epoch"):
        steps = plan_epoch(settings, len(split.train), (0, 8, 8), (0, 0))
    with stages.stage("read 200,000 rows"):
        for position in np.random.default_rng(0).choice(split.train, 200_000).tolist():
            reader.rows[position]
    with stages.stage("list the trained images"):
        storage.write_bytes(f"{out}/trained_on.parquet", trained_on_bytes(index, split))
    del steps
    return stages.costs


def trained_digests(_: Path, __: int, out: str) -> dict[str, dict[str, float]]:
    """Open the digests of the trained images as an actor of an inference does, twice."""
    from lungseg.model.checkpoint import Checkpoint
    from lungseg.model.trained_images import trained_images

    stages = Stages()
    model = Checkpoint(out, {"digests": {"trained_on.parquet": "made-up"}})
    for name in ("first actor", "next actor"):
        with stages.stage(name):
            found = trained_images(model)
            assert not any(f"{number:032x}" in found for number in range(1000))
    return stages.costs


def infer(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Plan an inference of prepared data."""
    return plan_inference(str(work / str(images) / "made-up"), images, out)


def listing(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Plan an inference of a listing."""
    path = work / f"listing-{images}.parquet"
    if not path.exists():
        write_listing(path, images)
    return plan_inference(str(path), images, out)


def csv(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Plan an inference of a CSV file."""
    listing = work / f"listing-{images}.parquet"
    if not listing.exists():
        write_listing(listing, images)
    path = Path(out) / "listing.csv"
    with pacsv.CSVWriter(path, pq.read_schema(listing)) as writer:
        for piece in pq.ParquetFile(listing).iter_batches():
            writer.write(piece)
    return plan_inference(str(path), images, out)


def folder(work: Path, images: int, out: str) -> dict[str, dict[str, float]]:
    """Plan an inference of a folder of images without masks."""
    lay_out(work / str(images), images)
    return plan_inference(str(work / str(images) / "images"), images, out)


def write_listing(path: Path, images: int) -> None:
    """Write a listing of images, 1,000 in a folder, with their patients."""
    schema = pa.schema([("image", pa.string()), ("patient_id", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, images, 1 << 16):
            numbers = range(first, min(images, first + (1 << 16)))
            paths = [f"/archive/images/{number // A_FOLDER:05d}/study-{number:08d}.dcm" for number in numbers]
            writer.write_batch(pa.record_batch([paths, [f"P{number // 3:08d}" for number in numbers]], schema))


def plan_inference(archive: str, images: int, out: str) -> dict[str, dict[str, float]]:
    """Plan an inference as the driver of jobs/infer.py does, and take every part from the plan."""
    from lungseg.inference.inputs import list_items
    from lungseg.inference.plan_stream import PlanStream
    from lungseg.inference.schedule import Schedule

    stages = Stages()
    settings = InferSettings(archive=archive, out=out)
    plan = {"archive": settings.archive, "model": "ab", "runs": ["a"], "checkpoints": ["/runs/a"]}
    with stages.stage("until the first parts"):
        stream = PlanStream(list_items(settings, PreprocessSettings()), settings.part_size, "settings")
        windows = Schedule(f"{out}/{Path(archive).stem}", plan, stream, settings.part_size).windows()
        planned = sum(part.images for part in next(windows))
    with stages.stage("all parts"):
        planned += sum(part.images for window in windows for part in window)
    assert planned == images
    return stages.costs


PARTS = {
    "prepare": [prepare],
    "train": [train_driver, train_rank, trained_digests],
    "infer": [infer],
    "listing": [listing],
    "csv": [csv],
    "folder": [folder],
}


def main() -> None:
    """Create the files, measure each part in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["prepare", "train", "infer", "listing"])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if {"train", "infer"} & {*arguments.parts}:
        write_dataset(arguments.work / str(arguments.images) / "made-up", arguments.images)
    out = storage.resolve(tempfile.mkdtemp(dir=arguments.work))
    os.environ["HOME"] = out  # of the file with the trained images
    costs = {}
    try:
        for call in (call for name in arguments.parts for call in PARTS[name]):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                costs[call.__name__] = process.submit(call, arguments.work, arguments.images, out).result()
    finally:
        shutil.rmtree(out)
    print(json.dumps({"images": arguments.images, **costs}, indent=1))


if __name__ == "__main__":
    main()
