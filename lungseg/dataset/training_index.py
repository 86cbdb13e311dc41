"""The training index: the samples of a study with their groups and folds, in one Arrow file that ranks map into memory.

The driver writes it once for all runs. Ranks of one machine share its pages, and create a Python object only for a row
that they read: about 200 bytes a sample on disk instead of 2,000 in each process.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import IO

import pyarrow as pa

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import PreprocessSettings
from lungseg.dataset import folds
from lungseg.dataset.catalog import PreparedDataset, read_dataset_json
from lungseg.dataset.masked_rows import Positions
from lungseg.errors import InputError
from lungseg.schema import METADATA, check_schema

_UNUSED = ("phash", "flags")
_REPEATED = ("dataset", "finding", "shard")
_DATASETS = "lungseg.datasets"
_BATCH_ROWS = 1 << 18
_ADVICE = "run the same lungseg train command again"


@dataclass(frozen=True)
class TrainingIndex:
    """Datasets of a study. rows: the rows of their indexes one after the other, with groups and folds (`folds`)."""

    datasets: tuple[PreparedDataset, ...]
    rows: pa.Table

    def rows_at(self, positions: Positions, names: Sequence[str]) -> pa.Table:
        """Return some text columns of some rows."""
        taken = self.rows.select(names).take(pa.array(positions))
        return pa.table({name: taken.column(name).cast(pa.string()).combine_chunks() for name in names})


def build_index(
    data: Sequence[PreparedDataset], linked: Sequence[folds.Link], fold_count: int, split_seed: int
) -> TrainingIndex:
    """Assign the samples of a study to groups and folds.

    Raises:
        SettingsError: a fold of the archive does not exist.

    """
    rows = pa.concat_tables([_compact(dataset.index) for dataset in data]).unify_dictionaries()
    rows = folds.with_groups_and_folds(rows.replace_schema_metadata(None), linked, fold_count, split_seed)
    datasets, start = [], 0
    for dataset in data:
        datasets.append(replace(dataset, index=rows.slice(start, dataset.index.num_rows)))
        start += dataset.index.num_rows
    return TrainingIndex(tuple(datasets), rows)


def write_index(path: str, index: TrainingIndex) -> None:
    """Write an index as an Arrow file."""
    described = [
        {
            "folder": data.folder,
            "name": data.name,
            "preprocess": data.preprocess.model_dump(mode="json"),
            "digest": data.digest,
            "annotated": data.annotated,
            "overlaps": data.overlaps,
            "rows": data.index.num_rows,
        }
        for data in index.datasets
    ]
    table = index.rows.replace_schema_metadata({**METADATA, _DATASETS: json.dumps(described)})

    def write(file: IO[bytes]) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, _BATCH_ROWS)

    storage.write_stream(path, write)


def open_index(path: str) -> TrainingIndex:
    """Map the file of `write_index` into memory; one in a bucket is copied to a local file first.

    Raises:
        InputError: the file does not exist, is damaged, or another version wrote it.

    """
    mapped = storage.map_file(path)
    try:
        rows = pa.ipc.open_file(mapped).read_all()
        metadata = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
        check_schema(int(metadata["lungseg.schema"]), path, metadata["lungseg.version"])
        described: list[Row] = json.loads(metadata[_DATASETS])
        return _with_datasets(described, rows, path)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a training index, or a damaged one: {_ADVICE}") from None


def has_same_data(index: TrainingIndex) -> bool:
    """Return whether the prepared datasets are still those that the index was made of.

    Raises:
        InputError: a dataset cannot be read.

    """
    return all(read_dataset_json(data.folder)["digest"] == data.digest for data in index.datasets)


def _with_datasets(described: Sequence[Row], rows: pa.Table, path: str) -> TrainingIndex:
    datasets, start = [], 0
    for values in described:
        preprocess = PreprocessSettings.stored(values["preprocess"], path)
        own = rows.slice(start, values["rows"])
        described_classes = tuple(values["annotated"]), tuple((first, second) for first, second in values["overlaps"])
        datasets.append(
            PreparedDataset(values["folder"], values["name"], preprocess, own, values["digest"], *described_classes)
        )
        start += values["rows"]
    if start != rows.num_rows:
        raise ValueError("rows are missing")
    return TrainingIndex(tuple(datasets), rows)


def _compact(index: pa.Table) -> pa.Table:
    """Leave out what training does not need, and store repeated texts once."""
    index = index.drop_columns([name for name in _UNUSED if name in index.column_names])
    for name in _REPEATED:
        index = index.set_column(index.schema.get_field_index(name), name, index.column(name).dictionary_encode())
    return index
