"""Time and requests to open a prepared dataset of many tars in a bucket: `python tests/benchmark_bucket_listing.py`.

The bucket is a server on this machine that answers each request after a fixed delay, by default 0.2 s, about what a
bucket in another region needs for a page of 1,000 files. The tars are files of one KiB without content, one image
each.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pytest
from made_up_dataset import write_dataset

from lungseg.dataset import catalog
from tests.folder_bucket import folder_bucket


def main() -> None:
    """Print the requests and seconds of opening the dataset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tars", type=int, default=40_000)
    parser.add_argument("--delay", type=float, default=0.2, metavar="S", help="seconds before each answer")
    options = parser.parse_args()
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "made-up", options.tars, images_per_tar=1, tar_bytes=1024)
        with folder_bucket(Path(folder), options.delay, monkeypatch) as (bucket, requests):
            start, cpu = time.monotonic(), time.process_time()
            data = catalog.open_dataset(f"{bucket}/made-up")
            print(
                f"{data.index.num_rows} tars: {requests.value} requests, {time.monotonic() - start:.1f} s, "
                f"{time.process_time() - cpu:.1f} CPU s of this process"
            )


if __name__ == "__main__":
    main()
