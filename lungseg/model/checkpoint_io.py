"""Save checkpoints; load their weights and training state. checkpoint.py finds and verifies them."""

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lungseg import storage
from lungseg.config import ModelSettings
from lungseg.model.checkpoint import FILES, Checkpoint, unusable_weights_error
from lungseg.model.custom_code import require_allowed
from lungseg.model.network import LungNetwork, build_network, skip_weight_init
from lungseg.storage.files import digest_bytes


@dataclass(frozen=True)
class Snapshot:
    """Content of a checkpoint: weights, training state, config (with `epoch`), and training images."""

    weights: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]
    trained_on: pa.Table


def save(folder: str, snapshot: Snapshot) -> None:
    """Write a snapshot to its own folder below `folder`, then delete the older ones."""
    config = snapshot.config
    step = f"-step-{config['step']:08d}" if config.get("step") else ""
    target = storage.join(folder, f"epoch-{config['epoch']:04d}{step}")
    state = io.BytesIO()
    torch.save(snapshot.state, state)
    storage.delete(storage.join(target, "config.json"))
    storage.write_bytes(storage.join(target, "model.safetensors"), safetensors.torch.save(snapshot.weights))
    storage.write_bytes(storage.join(target, "state.pt"), state.getvalue())
    storage.write_table(storage.join(target, "trained_on.parquet"), snapshot.trained_on)
    digests = {name: digest_bytes(storage.read_bytes(storage.join(target, name))) for name in FILES}
    storage.write_json(storage.join(target, "config.json"), {**config, "digests": digests})
    for old in storage.list_folders(folder):
        if old != target:
            storage.delete(old)


def load_model(checkpoint: Checkpoint, custom_network: str = "") -> LungNetwork:
    """Build the network of a checkpoint and load its weights, on the CPU.

    custom_network: the network that the caller allows to import, as `package.module:Name`.

    Raises:
        CheckpointError: the weights do not fit the network.
        SettingsError: the checkpoint names another custom network.

    """
    settings = ModelSettings.model_validate(checkpoint.config["settings"]["model"])
    require_allowed(checkpoint.folder, settings.custom, custom_network)
    with skip_weight_init():
        model = build_network(settings, pretrained=False)
    try:
        model.load_state_dict(load_weights(checkpoint))
    except (SafetensorError, RuntimeError) as error:
        raise unusable_weights_error(checkpoint, error) from None
    return model


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights."""
    return safetensors.torch.load(storage.read_bytes(storage.join(checkpoint.folder, "model.safetensors")))


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the training state, onto the CPU."""
    content = io.BytesIO(storage.read_bytes(storage.join(checkpoint.folder, "state.pt")))
    state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    return state
