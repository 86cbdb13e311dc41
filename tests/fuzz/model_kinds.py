"""Load damaged weights and training states as inference and a resumed training do. Imports torch."""

import functools
import tempfile
from pathlib import Path
from random import Random

import pyarrow as pa
import torch

from lungseg import storage
from lungseg.config import ModelSettings
from lungseg.model import checkpoint, checkpoint_io
from lungseg.model.network import build_network
from lungseg.schema import SCHEMA
from tests.fuzz.byte_mutations import mutate_bytes
from tests.fuzz.cases import Case, Kind
from tests.fuzz.value_mutations import change_file
from tests.fuzz.workspace import SETTINGS, write_config

_MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none")


@functools.cache
def _folder() -> Path:
    """Write a checkpoint of an untrained network."""
    folder = Path(tempfile.mkdtemp(prefix="lungseg-fuzz-"))
    state = {"learner": {"a": torch.zeros(3)}, "sums": (0.0, 0), "best": None}
    config = {"run": "a", "epoch": 1, "epochs": 1, "preprocess": SETTINGS.model_dump()}
    config["settings"] = {"model": _MODEL.model_dump(), "threshold": 0.5}
    names = ("image_id", "dataset", "pixel_digest")
    trained_on = pa.table({name: ["a"] for name in names}).replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    weights = build_network(_MODEL, pretrained=False).state_dict()
    checkpoint_io.save(str(folder), checkpoint_io.Snapshot(weights, state, config, storage.table_bytes(trained_on)))
    return folder / "epoch-0001"


def _case(name: str, random: Random) -> Case:
    content = (_folder() / name).read_bytes()
    return Case(name, change_file(name, content, random) if name.endswith("s") else mutate_bytes(content, random))


def _read(case: Case) -> None:
    """Load a checkpoint with one damaged file whose digest is right."""
    path = _folder() / case.name
    intact = path.read_bytes()
    path.write_bytes(case.content)
    try:
        write_config(path.parent, {"model": _MODEL.model_dump(), "threshold": 0.5})
        model = checkpoint.verify(str(path.parent))
        if case.name == "state.pt":
            assert isinstance(checkpoint_io.load_state(model), dict)
        else:
            checkpoint.require_tensors(model)
            network = checkpoint_io.load_model(model)
            assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())
    finally:
        path.write_bytes(intact)


KINDS = tuple(Kind(name, functools.partial(_case, name), _read) for name in ("model.safetensors", "state.pt"))
