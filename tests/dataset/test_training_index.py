"""The training index: the same rows, groups and folds after a round trip, mapped and not copied, or refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.dataset import folds, training_index
from lungseg.dataset.catalog import open_dataset
from lungseg.dataset.sample_reader import SampleReader
from lungseg.dataset.training_index import TrainingIndex
from lungseg.errors import InputError

LINKED = (("north/north_00", "south/south_02"),)
PLAN = folds.RunPlan("source-to-source", ("north",), 0, 2, 0)


@pytest.fixture(scope="module")
def index(prepared: Path) -> TrainingIndex:
    data = [open_dataset(str(prepared / name)) for name in ("north", "south")]
    return training_index.build_index(data, LINKED, 2, 0)


def test_a_written_index_gives_the_same_samples_and_split(index: TrainingIndex, tmp_path: Path) -> None:
    path = str(tmp_path / "index.arrow")
    training_index.write_index(path, index)
    opened = training_index.open_index(path)
    assert opened.rows.to_pylist() == index.rows.to_pylist()
    described = [(data.folder, data.name, data.preprocess, data.digest) for data in opened.datasets]
    assert described == [(data.folder, data.name, data.preprocess, data.digest) for data in index.datasets]
    splits = [folds.split(one.rows, PLAN) for one in (index, opened)]
    for name in ("train", "held_out", "cross"):
        assert np.array_equal(getattr(splits[0], name), getattr(splits[1], name))
    reader = SampleReader(opened.datasets)
    assert [reader.read(position).image_id for position in range(8)] == [row["image_id"] for row in reader.rows]
    assert reader.rows[0]["group"] == reader.rows[7]["group"] == 0


def test_an_open_index_is_mapped_and_not_in_memory(index: TrainingIndex, tmp_path: Path) -> None:
    rows = pa.concat_tables([index.datasets[0].index] * 20_000)
    many = TrainingIndex((replace(index.datasets[0], index=rows),), rows)
    training_index.write_index(str(tmp_path / "index.arrow"), many)
    before = pa.total_allocated_bytes()
    opened = training_index.open_index(str(tmp_path / "index.arrow"))
    assert opened.rows.num_rows == 100_000
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_selected_rows_are_plain_text_columns(index: TrainingIndex) -> None:
    table = index.rows_at(np.array([7, 0]), ("image_id", "dataset"))
    assert table.to_pylist() == [
        {"image_id": "south_02", "dataset": "south"},
        {"image_id": "north_00", "dataset": "north"},
    ]
    assert table.schema == pa.schema([("image_id", pa.string()), ("dataset", pa.string())])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_damaged_index_is_refused(damage: str, index: TrainingIndex, tmp_path: Path) -> None:
    path = tmp_path / "index.arrow"
    training_index.write_index(str(path), index)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"image_id,fold\n"}[damage])
    message = "cannot be read" if damage == "missing" else "not a training index, or a damaged one: run the same"
    with pytest.raises(InputError, match=rf"index\.arrow: {message}"):
        training_index.open_index(str(path))


def test_changed_data_is_noticed(own_prepared: Path) -> None:
    data = [open_dataset(str(own_prepared / "north"))]
    index = training_index.build_index(data, (), 2, 0)
    assert training_index.has_same_data(index)
    info = storage.read_json(str(own_prepared / "north" / "dataset.json"))
    info = {name: value for name, value in info.items() if name not in ("schema", "lungseg_version", "checked")}
    info["digest"] = "changed"
    storage.write_json(str(own_prepared / "north" / "dataset.json"), {**info, "checked": storage.digest(info)})
    assert not training_index.has_same_data(index)
