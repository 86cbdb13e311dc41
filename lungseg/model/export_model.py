"""Export a checkpoint as a folder for others: fp16 weights, config.json, card.json and README.md."""

import safetensors.torch
import torch
from torch import Tensor

from lungseg import storage
from lungseg.errors import CheckpointError, InputError
from lungseg.model.checkpoint import Checkpoint, read_config
from lungseg.model.checkpoint_io import load_model, load_weights
from lungseg.model.model_card import CARD, ModelCard
from lungseg.model.shared_config import shared_config

README = "README.md"
_LICENSE = "LICENSE"
_NAMES = ("config.json", "model.safetensors", CARD, README, _LICENSE)
_README = """---
library_name: lungseg
pipeline_tag: image-segmentation
---
# {title}

{table}

A model of lungseg for lung masks in frontal chest X-rays. Research software, not a medical device.

```sh
lungseg segment PATH... -o OUT --model FOLDER_OR_ADDRESS
```
"""
_MAX_FP16 = torch.finfo(torch.float16).max


def export_model(checkpoint: Checkpoint, folder: str, card: ModelCard, custom_network: str = "") -> None:
    """Write a checkpoint as a model folder. config.json is written last.

    Raises:
        CheckpointError: the weights do not fit the network, or fp16 cannot hold them.
        InputError: the folder has other files, or another model.

    """
    load_model(checkpoint, custom_network)  # raises an error for weights that do not fit
    content = safetensors.torch.save({name: _half(checkpoint, name, t) for name, t in load_weights(checkpoint).items()})
    config = shared_config(checkpoint, storage.digest_bytes(content))
    _require_empty(folder, config["digests"])
    storage.write_bytes(storage.join(folder, "model.safetensors"), content)
    storage.write_json(storage.join(folder, CARD), card.model_dump())
    storage.write_bytes(storage.join(folder, README), _readme(card).encode())
    terms = storage.join(checkpoint.folder, _LICENSE)
    if storage.exists(terms):  # the model was exported before, with a text of its terms
        storage.write_bytes(storage.join(folder, _LICENSE), storage.read_bytes(terms))
    storage.write_json(storage.join(folder, "config.json"), config)


def withdraw(folder: str) -> None:
    """Delete an exported model, config.json first."""
    for name in _NAMES:
        storage.delete(storage.join(folder, name))


def _require_empty(folder: str, digests: dict[str, str]) -> None:
    """Check that a folder has no files, except those of an earlier export of the same model.

    Raises:
        InputError: it has.

    """
    names = [storage.name_of(path) for path in storage.list_files(folder)] if storage.exists(folder) else []
    config = storage.join(folder, "config.json")
    is_same = "config.json" not in names or read_config(config)["digests"] == digests
    if not is_same or not set(names) <= set(_NAMES):
        raise InputError(f"{folder}: the folder has other files: pass a new folder")


def _readme(card: ModelCard) -> str:
    rows = {"Terms": card.terms, "Trained on": card.data, "Made by": card.made_by}
    table = "\n".join(f"- {name}: {text or 'not stated'}" for name, text in rows.items())
    return _README.format(title=card.title or "Lung segmentation in chest X-rays", table=table)


def _half(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """Convert weights to fp16. Vectors, such as variances of batch normalisation, are small and stay fp32."""
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    if float(tensor.abs().max()) > _MAX_FP16:
        raise CheckpointError(f"{checkpoint.folder}: {name} has values that fp16 cannot hold: export another model")
    return tensor.half()
