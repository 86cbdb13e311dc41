"""The settings of a checkpoint that an exported model states."""

import re
from typing import Any

from lungseg.model.checkpoint import MODEL_FORMAT, Checkpoint, stored_threshold, trained_on
from lungseg.model.checkpoint_classes import stored_thresholds

_KEPT = ("run", "epoch", "epochs", "trained", "train_on", "fold", "seed", "adapted_to", "preprocess", "custom_code")


def shared_config(checkpoint: Checkpoint, weights_digest: str) -> dict[str, Any]:
    """Return config.json without the settings of the training, which name folders of its machine."""
    config = checkpoint.config
    model = dict(config["settings"]["model"])
    if not re.fullmatch("imagenet|none", model.get("weights", "none")):
        model["weights"] = "none"  # the path of a file
    return {
        "model_format": MODEL_FORMAT,
        **{name: config[name] for name in _KEPT if name in config},
        **({"thresholds": thresholds} if len(thresholds := stored_thresholds(checkpoint)) > 1 else {}),
        "settings": {"model": model, "threshold": stored_threshold(checkpoint)},
        "trained_on_digests": sorted(trained_on(checkpoint)),
        "digests": {"model.safetensors": weights_digest},
    }
