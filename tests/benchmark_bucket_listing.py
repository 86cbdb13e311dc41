"""Time and requests to open a prepared dataset of many tars in a bucket: `python tests/benchmark_bucket_listing.py`.

The bucket is a moto server on this machine, which answers more slowly than a real one, so the number of requests and
the CPU time of the reader count. The tars are empty files of one KiB, one image each.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from made_up_dataset import write_dataset

from lungseg import storage
from lungseg.dataset import catalog
from tests.cluster.refusing import refusing
from tests.shared_fixtures import s3_bucket


def main() -> None:
    """Print the requests and seconds of opening the dataset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tars", type=int, default=40_000)
    options = parser.parse_args()
    monkeypatch = pytest.MonkeyPatch()
    with s3_bucket(monkeypatch) as bucket, tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "made-up", options.tars, images_per_tar=1, tar_bytes=1024)
        filesystem, inner = storage.open_filesystem(bucket)
        pafs.copy_files(f"{folder}/made-up", f"{inner}/made-up", destination_filesystem=filesystem)
        with refusing(os.environ["AWS_ENDPOINT_URL"], 0.0, seed=0) as (address, counter):
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            before, start, cpu = counter.requests, time.monotonic(), time.process_time()
            data = catalog.open_dataset(f"{bucket}/made-up")
            print(
                f"{data.index.num_rows} tars: {counter.requests - before} requests, "
                f"{time.monotonic() - start:.1f} s, {time.process_time() - cpu:.1f} CPU s of this process"
            )
    monkeypatch.undo()


if __name__ == "__main__":
    main()
