"""Save checkpoints; load their weights and training state. checkpoint.py finds and verifies them."""

import io
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lungseg import storage
from lungseg.config import ModelSettings
from lungseg.errors import CheckpointError
from lungseg.model.checkpoint import FILES, Checkpoint, unusable_weights_error
from lungseg.model.custom_code import require_allowed
from lungseg.model.graph_file import require_torch_model
from lungseg.model.network import LungNetwork, build_network, skip_weight_init
from lungseg.storage.files import digest_bytes


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint: weights, training state, config (with `epoch`), and training images as Parquet."""

    weights: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]
    trained_on: bytes


def save(folder: str, snapshot: Snapshot) -> None:
    """Write a snapshot to its own folder below `folder`, then delete the older ones."""
    config = snapshot.config
    step = f"-step-{config['step']:08d}" if config.get("step") else ""
    target = storage.join(folder, f"epoch-{config['epoch']:04d}{step}")
    state = io.BytesIO()
    torch.save(snapshot.state, state)
    contents = {
        "model.safetensors": safetensors.torch.save(snapshot.weights),
        "state.pt": state.getvalue(),
        "trained_on.parquet": snapshot.trained_on,
    }
    storage.delete(storage.join(target, "config.json"))
    for name in FILES:
        storage.write_bytes(storage.join(target, name), contents[name])
    digests = {name: digest_bytes(contents[name]) for name in FILES}
    storage.write_json(storage.join(target, "config.json"), {**config, "digests": digests})
    for old in storage.list_folders(folder):
        if old != target:
            storage.delete(old)


def load_model(checkpoint: Checkpoint, custom_network: str = "") -> LungNetwork:
    """Build the network of a checkpoint and load its weights, on the CPU.

    custom_network: the network that the caller allows to import, written as `package.module:Name`.

    Raises:
        CheckpointError: the weights do not fit the network, or are in a graph file.
        SettingsError: the checkpoint names another custom network.

    """
    require_torch_model(checkpoint.folder)
    settings = ModelSettings.model_validate(checkpoint.config["settings"]["model"])
    require_allowed(checkpoint.folder, settings.custom, custom_network)
    with skip_weight_init():
        model = build_network(settings, pretrained=False, classes=len(checkpoint.preprocess.classes))
    weights = load_weights(checkpoint)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise unusable_weights_error(checkpoint, error) from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: the weights have values that are not finite numbers: the training diverged; train "
            "again with a lower --optim.lr"
        )
    return model


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights; fp16, as in exported models, becomes fp32.

    Raises:
        CheckpointError: the file has no tensors, or tensors of an unknown type.

    """
    content = storage.read_bytes(storage.join(checkpoint.folder, "model.safetensors"))
    try:
        weights = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise unusable_weights_error(checkpoint, error) from None
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the training state, onto the CPU.

    Raises:
        CheckpointError: the file is damaged.

    """
    content = io.BytesIO(storage.read_bytes(storage.join(checkpoint.folder, "state.pt")))
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # the reader of pickles and archives raises exceptions of many types
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(f"{checkpoint.folder}: state.pt is damaged: copy it again, or train again")
    return state
