"""Compare reading samples from a bucket, without room for local copies, with bare range requests of the same bytes.

    python tests/benchmark_bucket.py --data data/512

The bucket is a moto server on this machine, so only ratios and the number of requests mean something. The rounds
alternate between both. Nothing is decoded.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import pyarrow.fs as pafs
import pytest

from lungseg import storage
from lungseg.dataset import catalog
from lungseg.dataset.shard_cache import ShardCache
from lungseg.dataset.shard_format import member_ranges
from tests.cluster.refusing import refusing
from tests.shared_fixtures import s3_bucket

_CACHE_MIB = 1  # smaller than any tar


def main() -> None:
    """Print requests and CPU time per sample, and the ratio of the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="folder of prepared datasets")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    monkeypatch = pytest.MonkeyPatch()
    with s3_bucket(monkeypatch) as bucket:
        pairs = _upload(options.data, bucket)[: options.images]
        with refusing(os.environ["AWS_ENDPOINT_URL"], 0.0, seed=0) as (address, counter):
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            cache, bare = ShardCache(_CACHE_MIB), _bare_reader(bucket)
            ways: dict[str, Callable[[], object]] = {
                "samples": lambda: [cache.read(tar, member_ranges(row)) for tar, row in pairs],
                "bare requests": lambda: [bare(tar, row) for tar, row in pairs],
            }
            walls: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(options.rounds + 1):
                for name, read in ways.items():
                    before, start, cpu = counter.requests, time.monotonic(), time.process_time()
                    read()
                    wall = time.monotonic() - start
                    requests, cpu = counter.requests - before, time.process_time() - cpu
                    label = f"{'first round, ' if not number else ''}{name}"
                    print(
                        f"{label}: {requests / len(pairs):.2f} requests, {1000 * cpu / len(pairs):.1f} ms CPU a sample"
                    )
                    if number:
                        walls[name].append(wall)
            ratios = [one / other for one, other in zip(walls["bare requests"], walls["samples"], strict=True)]
            print(f"rate of samples to bare requests: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    monkeypatch.undo()


def _upload(folder: str, bucket: str) -> list[tuple[str, dict[str, object]]]:
    """Copy the tars to the bucket; return the tar and the index row of each sample, those of all tars in turn."""
    filesystem, inner = storage.open_filesystem(bucket)
    pairs = []
    for path in catalog.find_datasets([folder]):
        data = catalog.open_dataset(path)
        pafs.copy_files(path, f"{inner}/{data.name}", destination_filesystem=filesystem)
        pairs += [(f"{bucket}/{data.name}/{row['shard']}.tar", row) for row in data.index.to_pylist()]
    return pairs[:: max(1, len(pairs) // 64)]


def _bare_reader(bucket: str) -> Callable[[str, dict[str, object]], bytes]:
    filesystem, _ = storage.open_filesystem(bucket)
    opened: dict[str, object] = {}

    def read(tar: str, row: dict[str, object]) -> bytes:
        if tar not in opened:
            opened[tar] = filesystem.open_input_file(tar.removeprefix("s3://"))
        ranges = member_ranges(row).values()
        start = min(offset for offset, _ in ranges)
        size = max(offset + length for offset, length in ranges) - start
        content: bytes = opened[tar].read_at(size, start)  # type: ignore[attr-defined]
        return content

    return read


if __name__ == "__main__":
    main()
