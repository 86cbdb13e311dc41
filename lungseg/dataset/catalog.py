"""Prepared data sets as a whole: begun, finished from their parts, found, opened.

A prepared data set is a folder: `<dataset>-000000.tar` ..., `plan.parquet` (which input goes into which tar),
`parts/<shard>.json` (what each tar was made of, its digest, its members), `manifest.parquet` (every input and its
status), `index.parquet` (every sample and where it lies) and `dataset.json`, which is written last: a folder without it
is not finished. The index is what counts: an input that only the whole data set shows to be wrong (a mask far larger
than all others) lies in its tar, but not in the index.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.errors import InputError, ShardError
from lungseg.storage.files import digest_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedDataset:
    """A finished data set: its folder, its name, its settings, one index row a sample, the digest of all its tars."""

    folder: str
    name: str
    preprocess: PreprocessSettings
    index: pa.Table
    digest: str


def list_datasets(path: str) -> list[str]:
    """List the finished data sets that a folder is or directly holds."""
    return [folder for folder in [path, *storage.list_folders(path)] if storage.exists(f"{folder}/dataset.json")]


def list_unfinished(path: str) -> list[str]:
    """List the data sets that a folder is or directly holds and that were begun but not finished."""
    return [
        folder
        for folder in [path, *storage.list_folders(path)]
        if storage.exists(f"{folder}/plan.parquet") and not storage.exists(f"{folder}/dataset.json")
    ]


def find_datasets(paths: Iterable[str]) -> list[str]:
    """List the prepared data sets that are named, or that lie directly in a named folder.

    Raises:
        InputError: a path is not there or holds no finished data set.

    """
    found: list[str] = []
    for path in paths:
        inside = list_datasets(path)
        if not storage.exists(path):
            raise InputError(f"{path}: no such folder: prepare it first (jobs/prepare.py --source FOLDER --out {path})")
        if not inside:
            raise InputError(
                f"{path}: no dataset.json in it or below: not prepared, or not finished; run jobs/prepare.py again"
            )
        for folder in list_unfinished(path):
            logger.warning("%s: not finished, and left out: run jobs/prepare.py again", folder)
        found.extend(inside)
    return list(dict.fromkeys(found))


def open_dataset(folder: str) -> PreparedDataset:
    """Open a finished data set; every tar must be there at its full size, with the index that was written with it.

    Raises:
        ShardError: a tar is missing or of another size than dataset.json says, or the index is of another run.
        InputError: dataset.json or the index cannot be read.

    """
    info = read_dataset_json(folder)
    for shard in info["shards"]:
        check_shard_size(folder, shard)
    path = storage.join(folder, "index.parquet")
    content = storage.read_bytes(path)
    index = storage.read_table(path, content)
    if digest_bytes(content) != info["files"]["index.parquet"]:
        raise ShardError(
            f"{path}: not the index of {info['shards'][0]['name']}.tar and the others here: it is of another run, "
            "or damaged; run jobs/prepare.py again"
        )
    preprocess = PreprocessSettings.model_validate(info["preprocess"])
    return PreparedDataset(folder, info["dataset"], preprocess, index, info["digest"])


def read_dataset_json(folder: str) -> dict[str, Any]:
    """Read dataset.json, as it was written.

    Raises:
        InputError: it cannot be read.
        ShardError: it was changed or damaged.

    """
    path = storage.join(folder, "dataset.json")
    info = storage.read_json(path)
    if not storage.has_valid_digest(info):
        raise ShardError(f"{path}: not as it was written: changed or damaged; run jobs/prepare.py again")
    return info


def check_shard_size(folder: str, shard: dict[str, Any]) -> None:
    """Compare a tar's size with what dataset.json says of it.

    Raises:
        ShardError: it is missing or of another size: cut, or from another run.

    """
    path = storage.join(folder, f"{shard['name']}.tar")
    found = (storage.try_stat(path) or (0, 0))[0]
    if found != shard["bytes"]:
        raise ShardError(f"{path}: {found} bytes, expected {shard['bytes']}: missing or cut; run jobs/prepare.py again")
