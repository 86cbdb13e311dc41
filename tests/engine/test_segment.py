import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lungseg.config import InferSettings, ModelSettings, TrainSettings
from lungseg.data import datasets, images, sources
from lungseg.engine import checkpoint
from lungseg.engine.segment import Item, Segmenter
from lungseg.errors import CheckpointError
from lungseg.model.network import build
from lungseg.schema import PREDICTIONS, SCHEMA, table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> str:
    """A checkpoint of an untrained network that says it was trained on the first prepared picture."""
    folder = str(tmp_path_factory.mktemp("model"))
    settings = TrainSettings(model=ModelSettings(encoder="tu-mobilenetv3_small_100", weights="none"))
    torch.manual_seed(0)
    network = build(settings.model)
    data = datasets.open_dataset(datasets.find_datasets([str(prepared)])[0])
    config = {
        "run": "test",
        "epoch": 1,
        "preprocess": data.preprocess.model_dump(),
        "settings": settings.model_dump(),
    }
    learnt = data.index.slice(0, 1).select(["image_id", "dataset", "sha256"])
    learnt = learnt.replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    checkpoint.save(folder, checkpoint.Snapshot(dict(network.state_dict()), {}, config, learnt))
    return checkpoint.find(f"{folder}/epoch-0001").folder


def _items(archive: Path) -> list[Item]:
    return [Item(record) for record in sources.discover(str(archive))]


def test_rows_fit_the_schema_whatever_the_batch(archive: Path, model: str) -> None:
    items = _items(archive)
    one, many = (Segmenter(model, "cpu", InferSettings(batch=batch))(items) for batch in (1, 5))
    assert table(one, PREDICTIONS).num_rows == len(items)
    assert [row["image_id"] for row in one] == [item.record.image_id for item in items]
    for first, second in zip(one, many, strict=True):
        shape = first["height"], first["width"]
        masks = [images.decode_rle(row["mask"], *shape) for row in (first, second)]
        assert np.mean(masks[0] != masks[1]) < 1e-3
    assert [row["seen_in_training"] for row in one].count(True) == 1


def test_bad_files_are_rows_and_their_neighbours_are_not_moved(archive: Path, model: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(archive, tmp_path / "own"))
    before = Segmenter(model, "cpu", InferSettings(batch=4))(_items(own))
    files = sorted(own.rglob("images/*"))
    files[1].write_bytes(b"torn")
    mask = own / files[2].parent.parent.relative_to(own) / "masks" / files[2].name
    assert mask.is_file()
    cv2.imwrite(str(mask), np.full((40, 40), 255, np.uint8))
    items = _items(own)
    files[3].unlink()  # gone since it was listed
    after = {row["source_uri"]: row for row in Segmenter(model, "cpu", InferSettings(batch=4))(items)}
    assert (after[str(files[1])]["status"], after[str(files[1])]["mask"]) == ("rejected", None)
    assert (after[str(files[3])]["status"], after[str(files[3])]["error"].split(":")[0]) == ("failed", "unreadable")
    unfit = after[str(files[2])]
    assert (unfit["status"], unfit["error"].split(":")[0], unfit["dice"]) == ("ok", "mask_size", None)
    for row in before:
        if row["source_uri"] not in {str(file) for file in files[1:4]}:
            assert after[row["source_uri"]]["mask"] == row["mask"]


def test_postprocessing_leaves_two_components_at_most(archive: Path, model: str) -> None:
    rows = Segmenter(model, "cpu", InferSettings(postprocess="lungs"))(_items(archive))
    assert all(row["components"] <= 2 for row in rows)


def test_a_damaged_tar_is_rows_not_an_end(prepared: Path, model: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(prepared, tmp_path / "own"))
    data = datasets.open_dataset(datasets.find_datasets([str(own)])[0])
    row = data.index.to_pylist()[0]
    tar = Path(data.folder) / f"{row['shard']}.tar"
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] + 40] ^= 0xFF
    tar.write_bytes(content)
    record = sources.Record(row["image_id"], row["dataset"], f"{tar}#{row['image_id']}", sha256=row["sha256"])
    (result,) = Segmenter(model, "cpu", InferSettings())([Item(record, str(tar), row)])
    assert (result["status"], result["error"].split(":")[0]) == ("failed", "shard")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        Segmenter(str(tmp_path), "cpu", InferSettings())
