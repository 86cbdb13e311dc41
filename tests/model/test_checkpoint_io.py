"""Saving and loading of weights, and refusal of weights that do not fit."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.errors import CheckpointError
from lungseg.model import checkpoint, checkpoint_io
from lungseg.model.network import build_network
from lungseg.schema import SCHEMA

torch.set_num_threads(1)

SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
TRAINED_ON = pa.table({"pixel_digest": ["11"]}).replace_schema_metadata({"lungseg.schema": str(SCHEMA)})


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_network(SMALL).state_dict())


@pytest.fixture(scope="module")
def saved(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint; tests only read it."""
    config = {
        "epoch": 3,
        "step": 40,
        "preprocess": PreprocessSettings(size=64).model_dump(),
        "settings": {"model": SMALL.model_dump()},
    }
    folder = tmp_path_factory.mktemp("saved")
    checkpoint_io.save(
        str(folder), checkpoint_io.Snapshot(weights, {"sums": (1.5, 2)}, config, storage.table_bytes(TRAINED_ON))
    )
    return folder / "epoch-0003-step-00000040"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(saved, tmp_path / saved.name)


def replace_weights(folder: Path, content: bytes) -> checkpoint.Checkpoint:
    """Replace the weights and their digest."""
    (folder / "model.safetensors").write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["digests"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    return checkpoint.verify(str(folder))


def test_saved_content_is_loaded_unchanged(saved: Path, weights: dict[str, torch.Tensor]) -> None:
    verified = checkpoint.verify(str(saved))
    for loaded in (checkpoint_io.load_weights(verified), checkpoint_io.load_model(verified).state_dict()):
        assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert checkpoint_io.load_state(verified) == {"sums": (1.5, 2)}
    checkpoint.require_tensors(verified)


def test_pickle_as_weights_is_refused(folder: Path) -> None:
    replaced = replace_weights(folder, pickle.dumps({"a": 1}))
    for load in (checkpoint.require_tensors, checkpoint_io.load_model):
        with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its network") as refused:
            load(replaced)
        assert len(str(refused.value).splitlines()) == 1


def test_weights_of_another_network_are_refused(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    other = {name: value[:1] for name, value in weights.items() if value.ndim}
    replaced = replace_weights(folder, safetensors.torch.save({name: value.clone() for name, value in other.items()}))
    checkpoint.require_tensors(replaced)  # checks only that they are tensors
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit its network") as refused:
        checkpoint_io.load_model(replaced)
    assert len(str(refused.value).splitlines()) == 1
