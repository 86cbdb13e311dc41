"""Export a checkpoint as a folder for others: fp16 weights, config.json, card.json and README.md."""

import re
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lungseg import storage
from lungseg.errors import CheckpointError, InputError
from lungseg.model.checkpoint import MODEL_FORMAT, Checkpoint, stored_threshold, trained_on
from lungseg.model.checkpoint_io import load_model, load_weights
from lungseg.model.model_card import CARD, ModelCard

_MAX_FP16 = torch.finfo(torch.float16).max
_KEPT = ("run", "epoch", "epochs", "trained", "train_on", "fold", "seed", "adapted_to", "preprocess", "custom_code")


def export_model(checkpoint: Checkpoint, folder: str, card: ModelCard, custom_network: str = "") -> None:
    """Write a checkpoint as a model folder. config.json is written last.

    Raises:
        CheckpointError: the weights do not fit the network, or fp16 cannot hold them.
        InputError: the folder has other files.

    """
    if storage.exists(folder) and storage.list_files(folder):
        raise InputError(f"{folder}: the folder has files: pass a new folder")
    load_model(checkpoint, custom_network)  # raises an error for weights that do not fit
    content = safetensors.torch.save({name: _half(checkpoint, name, t) for name, t in load_weights(checkpoint).items()})
    storage.write_bytes(storage.join(folder, "model.safetensors"), content)
    storage.write_json(storage.join(folder, CARD), card.model_dump())
    storage.write_json(storage.join(folder, "config.json"), _config(checkpoint, storage.digest_bytes(content)))


def _half(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """Convert weights to fp16. Vectors, such as variances of batch normalisation, are small and stay fp32."""
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    if float(tensor.abs().max()) > _MAX_FP16:
        raise CheckpointError(f"{checkpoint.folder}: {name} has values that fp16 cannot hold: export another model")
    return tensor.half()


def _config(checkpoint: Checkpoint, weights_digest: str) -> dict[str, Any]:
    """Return config.json without the settings of the training, which name folders of its machine."""
    config = checkpoint.config
    model = dict(config["settings"]["model"])
    if not re.fullmatch("imagenet|none", model.get("weights", "none")):
        model["weights"] = "none"  # the path of a file
    return {
        "model_format": MODEL_FORMAT,
        **{name: config[name] for name in _KEPT if name in config},
        "settings": {"model": model, "threshold": stored_threshold(checkpoint)},
        "trained_on_digests": sorted(trained_on(checkpoint)),
        "digests": {"model.safetensors": weights_digest},
    }
