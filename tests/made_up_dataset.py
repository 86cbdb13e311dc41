"""A prepared dataset of any size without pictures: a real index and dataset.json, and empty tars of full size."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.schema import INDEX

IMAGES_PER_TAR, TAR_BYTES = 256, 1 << 26
_BATCH = 1 << 18
_SAME_PICTURE = 1000  # one image in this many has the pixels of the one before it
_IMAGES_PER_PATIENT = 3


def write_dataset(folder: Path, count: int, images_per_tar: int = IMAGES_PER_TAR, tar_bytes: int = TAR_BYTES) -> None:
    """Write a dataset of `count` images with masks; a finished one is not changed."""
    if (folder / "dataset.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / "index.parquet", INDEX, compression="zstd", write_page_checksum=True) as writer:
        for rows in _index(folder.name, count, images_per_tar):
            writer.write_table(rows)
    shards = [
        {"name": f"{folder.name}-{number:06d}", "bytes": tar_bytes, "sha256": f"{number:064x}"}
        for number in range(-(-count // images_per_tar))
    ]
    for shard in shards:
        with (folder / f"{shard['name']}.tar").open("wb") as tar:
            tar.truncate(tar_bytes)
    digest = hashlib.sha256()
    for chunk in storage.read_chunks(str(folder / "index.parquet")):
        digest.update(chunk)
    info = {
        "dataset": folder.name,
        "preprocess": PreprocessSettings().model_dump(),
        "samples": count,
        "digest": digest.hexdigest()[:16],
        "files": {"index.parquet": digest.hexdigest()},
        "shards": shards,
    }
    storage.write_json(str(folder / "dataset.json"), {**info, "checked": storage.digest(info)})


def _index(name: str, count: int, images_per_tar: int) -> Iterator[pa.Table]:
    chance = np.random.default_rng(0)
    for start in range(0, count, _BATCH):
        numbers = np.arange(start, min(start + _BATCH, count))
        digests = chance.integers(0, 256, (numbers.size, 16), np.uint8)
        digests[1:][numbers[1:] % _SAME_PICTURE == 0] = digests[:-1][numbers[1:] % _SAME_PICTURE == 0]
        columns = {
            "image_id": _numbered("study-", numbers),
            "dataset": pa.array([name] * numbers.size),
            "patient_id": _numbered("patient-", numbers // _IMAGES_PER_PATIENT),
            "finding": pa.array(np.array(["normal", "abnormal"], object)[numbers % 2]),
            "pixel_digest": _hexadecimal(digests),
            "phash": _hexadecimal(chance.integers(0, 256, (numbers.size, 32), np.uint8)),
            "fold": pa.nulls(numbers.size, pa.int32()),
            "flags": pa.array([[]] * numbers.size, pa.list_(pa.string())),
            "shard": _numbered(f"{name}-", numbers // images_per_tar, 6),
        }
        for member in ("image", "mask", "json"):
            columns[f"{member}_offset"] = pa.array(numbers % images_per_tar * 250_000)
            columns[f"{member}_size"] = pa.array(chance.integers(3_000, 150_000, numbers.size))
            columns[f"{member}_crc32"] = pa.array(chance.integers(0, 1 << 32, numbers.size))
        yield pa.table({field.name: columns[field.name].cast(field.type) for field in INDEX}, INDEX)


def _numbered(prefix: str, numbers: NDArray[np.int64], width: int = 8) -> pa.Array:
    return pa.array([f"{prefix}{number:0{width}d}" for number in numbers.tolist()])


def _hexadecimal(digests: NDArray[np.uint8]) -> pa.Array:
    text, length = digests.tobytes().hex(), 2 * digests.shape[1]
    offsets = np.arange(0, len(text) + 1, length, dtype=np.int32)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(text.encode()))
