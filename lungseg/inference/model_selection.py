"""Find the models of an inference. Does not import torch."""

import logging
from collections.abc import Sequence

from lungseg.errors import InputError, SettingsError
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import require_one_class
from lungseg.plurals import counted

logger = logging.getLogger(__name__)


def find_models(paths: Sequence[str], custom_network: str = "") -> list[Checkpoint]:
    """Find the models by name, folder or address, as in `sources.resolve`. All must use the same preprocessing.

    custom_network: the network of the user's own code that checkpoints may name, written as `package.module:Name`.

    Raises:
        LungsegError: a model cannot be used, or the preprocessing differs.

    """
    folders = [sources.resolve(path) for path in paths]
    by_digest = {model.digest: model for folder in folders for model in checkpoint.find_all(folder)}
    models = list(by_digest.values())
    checkpoint.require_custom_code(models, custom_network)
    for model in models:
        require_one_class(model)
        checkpoint.require_tensors(model)
        if not model.config.get("trained", True):
            logger.warning(
                "%s: trained for %d of %s so far", model.folder, model.epoch, counted(model.config["epochs"], "epoch")
            )
        differences = model.preprocess.differences(models[0].preprocess)
        if differences:
            raise InputError(
                f"{model.folder} and {models[0].folder} were trained with different preprocessing ({differences}): "
                "pass models with the same preprocessing"
            )
        if model.config.get("adapted_to", {}).get("model") in by_digest:
            raise SettingsError(
                f"{model.folder} was adapted from another of the given models, and each mask would be the "
                "mean of both: pass only one of them"
            )
    return models


def mean_threshold(models: Sequence[Checkpoint]) -> float:
    """Return the mean of the models' thresholds for lung pixels."""
    return sum(checkpoint.stored_threshold(model) for model in models) / len(models)
