"""Find and open prepared datasets.

A prepared dataset is a folder with `<dataset>-000000.tar` ..., `plan.parquet` (the tar of each input),
`parts/<shard>.json` (the inputs digest, tar digest and members of each tar), `manifest.parquet` (every input and its
status), `index.parquet` (every sample and its byte ranges) and `dataset.json`. `dataset.json` is written last: a folder
without it is incomplete. Readers use the index only: an input that is rejected after all tars are written (a mask far
larger than all others) is stored in its tar but not in the index.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from lungseg import storage
from lungseg.arrays import Row
from lungseg.arrow import pa
from lungseg.config import PreprocessSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError, ShardError
from lungseg.storage.json_files import JsonFields, Whole, check_fields
from lungseg.storage.table_formats import INDEX_TABLE, TableFormat

logger = logging.getLogger(__name__)

SUBGROUPS = ("finding", "age_group", "sex")
"""Columns of the manifest that describe the patient and the image."""


class _ShardFields(JsonFields):
    name: str
    bytes: Whole
    sha256: str


class _FileDigests(JsonFields):
    index: str = Field(alias="index.parquet")


class _DatasetFields(JsonFields):
    dataset: str
    digest: str
    preprocess: dict[str, Any]
    files: _FileDigests
    shards: list[_ShardFields]
    annotated: list[str] | None = None
    overlaps: list[tuple[str, str]] = Field(default_factory=list)


@dataclass(frozen=True)
class PreparedDataset:
    """A finished dataset. index: one row per sample. digest: of all its tars.

    annotated: the classes that a sample has a mask of. overlaps: pairs of classes that share pixels in a sample.
    """

    folder: str
    name: str
    preprocess: PreprocessSettings
    index: pa.Table
    digest: str
    annotated: tuple[str, ...] = ONE_CLASS
    overlaps: tuple[tuple[str, str], ...] = ()


def read_subgroups(folders: Iterable[str]) -> dict[tuple[str, str], Row]:
    """Return finding, age_group and sex of each image by (dataset, image_id); None where unknown.

    Raises:
        InputError: a manifest cannot be read.

    """
    names = ("dataset", "image_id", *SUBGROUPS)
    columns = TableFormat(pa.schema([(name, pa.string()) for name in names]), frozenset(SUBGROUPS))
    rows = [
        row
        for folder in folders
        for row in storage.read_table(storage.join(folder, "manifest.parquet"), expected=columns)
        .select(names)
        .to_pylist()
    ]
    return {(row["dataset"], row["image_id"]): {name: row[name] for name in SUBGROUPS} for row in rows}


def list_datasets(path: str) -> list[str]:
    """List the finished datasets: the folder itself or its direct subfolders."""
    return [folder for folder in _candidates(path) if _is_finished(folder)]


def list_unfinished(path: str) -> list[str]:
    """List the datasets whose preparation was started but not finished: the folder itself or its direct subfolders."""
    return [
        folder for folder in _candidates(path) if storage.exists(f"{folder}/plan.parquet") and not _is_finished(folder)
    ]


def _candidates(path: str) -> list[str]:
    return [path, *storage.list_folders(path)]


def _is_finished(folder: str) -> bool:
    """Return whether a folder has a dataset.json of lungseg, also a damaged one or one of another version.

    Other programs, such as nnU-Net, write files of this name, too. They have no schema, and no plan is beside them.
    """
    path = storage.join(folder, "dataset.json")
    if not storage.exists(path):
        return False
    try:
        info = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        info = None
    has_schema = isinstance(info, dict) and "schema" in info
    return has_schema or storage.exists(storage.join(folder, "plan.parquet"))


def has_foreign_json(folder: str) -> bool:
    """Return whether a folder has a dataset.json that lungseg did not write."""
    return storage.exists(storage.join(folder, "dataset.json")) and not _is_finished(folder)


def find_datasets(paths: Iterable[str]) -> list[str]:
    """List the finished datasets of several folders, each once, and warn about unfinished ones.

    Raises:
        InputError: a path does not exist or holds no finished dataset.

    """
    datasets: list[str] = []
    for path in paths:
        finished = list_datasets(path)
        if not storage.exists(path):
            raise InputError(f"{path}: no such folder: prepare it first (lungseg prepare --source FOLDER --out {path})")
        if not finished:
            raise InputError(
                f"{path}: no dataset.json of lungseg in it or in its subfolders: not prepared, or not finished; "
                "run lungseg prepare again"
            )
        for folder in list_unfinished(path):
            logger.warning("%s: not finished, skipped: run lungseg prepare again", folder)
        datasets.extend(finished)
    return list(dict.fromkeys(datasets))


@dataclass(frozen=True)
class DatasetDescription:
    """A finished dataset without its index. info: content of dataset.json."""

    folder: str
    preprocess: PreprocessSettings
    info: Row

    def tars(self) -> list[str]:
        """List the paths of its tars."""
        return [storage.join(self.folder, f"{shard['name']}.tar") for shard in self.info["shards"]]


def describe_dataset(folder: str) -> DatasetDescription:
    """Read dataset.json of a finished dataset; check that each tar has its full size.

    Raises:
        ShardError: a tar is missing or has another size than in dataset.json.
        InputError: dataset.json cannot be read.

    """
    info = read_dataset_json(folder)
    check_shard_sizes(folder, info["shards"])
    preprocess = PreprocessSettings.stored(info["preprocess"], storage.join(folder, "dataset.json"))
    return DatasetDescription(folder, preprocess, info)


def open_dataset(folder: str) -> PreparedDataset:
    """Open a finished dataset; check that each tar has its full size and that the index belongs to it.

    Raises:
        ShardError: a tar is missing or has another size than in dataset.json, or the index is from another run.
        InputError: dataset.json or the index cannot be read.

    """
    data = describe_dataset(folder)
    path = storage.join(folder, "index.parquet")
    content = storage.read_bytes(path)
    index = storage.read_table(path, content, INDEX_TABLE)
    _require_own_index(storage.digest_bytes(content), data.info, path)
    _require_own_rows(index, data.info, path)
    return PreparedDataset(
        folder,
        data.info["dataset"],
        data.preprocess,
        index,
        data.info["digest"],
        _annotated(data),
        tuple((first, second) for first, second in data.info.get("overlaps", [])),
    )


def _annotated(data: DatasetDescription) -> tuple[str, ...]:
    """Return the annotated classes; files of one class from earlier versions do not name it."""
    classes = data.preprocess.classes
    return tuple(data.info.get("annotated", classes if len(classes) == 1 else ()))


def read_index(data: DatasetDescription) -> Iterator[pa.Table]:
    """Yield the index of a dataset in pieces; check that it belongs to the dataset.

    Raises:
        ShardError: the index is from another run.
        InputError: it cannot be read.

    """
    path = storage.join(data.folder, "index.parquet")
    with storage.local_file(path) as local:
        digest = hashlib.sha256()
        for chunk in storage.read_chunks(local):
            digest.update(chunk)
        first = True
        for rows in storage.read_table_pieces(path, local, INDEX_TABLE):
            if first:  # after the first piece: a damaged file says more than a wrong digest
                _require_own_index(digest.hexdigest(), data.info, path)
            first = False
            _require_own_rows(rows, data.info, path)
            yield rows


def _require_own_index(digest: str, info: Row, path: str) -> None:
    if digest != info["files"]["index.parquet"]:
        raise ShardError(
            f"{path}: does not belong to {info['shards'][0]['name']}.tar and the other tars in this folder: "
            "damaged, or from another run; run lungseg prepare again"
        )


def _require_own_rows(index: pa.Table, info: Row, path: str) -> None:
    """Refuse an index with rows of another dataset, or of a tar that dataset.json does not list.

    Raises:
        ShardError: it has such rows.

    """
    known = {"dataset": {info["dataset"]}, "shard": {shard["name"] for shard in info["shards"]}}
    for name, values in known.items():
        other = sorted(set(index.column(name).unique().to_pylist()) - values)
        if other:
            raise ShardError(f"{path}: {name} {other[0]} is not in dataset.json: run lungseg prepare again")


def read_dataset_json(folder: str) -> Row:
    """Read and verify dataset.json.

    Raises:
        InputError: it cannot be read.
        ShardError: it was changed or damaged.

    """
    path = storage.join(folder, "dataset.json")
    content = storage.read_bytes(path)
    info = storage.read_json(path, content)
    if not storage.has_valid_digest(info):
        raise ShardError(f"{path}: changed or damaged after it was written: run lungseg prepare again")
    check_fields(content, path, _DatasetFields)
    return info


def check_shard_sizes(folder: str, shards: Sequence[Row]) -> None:
    """Compare the size of each tar with its entry in dataset.json; in a bucket, one listing gives all sizes.

    Raises:
        ShardError: a tar is missing, truncated, or from another run.

    """
    paths = [storage.join(folder, f"{shard['name']}.tar") for shard in shards]
    is_remote = "://" in folder and len(shards) > 1
    listed = storage.list_stats(folder, recursive=False) if is_remote else {}
    for path, shard in zip(paths, shards, strict=True):
        size, _ = (listed.get(path) if is_remote else storage.try_stat(path)) or (0, 0)
        if size != shard["bytes"]:
            raise ShardError(
                f"{path}: {size} bytes, expected {shard['bytes']}: missing or truncated; run lungseg prepare again"
            )
