"""Find the models of an inference. Does not import torch."""

import logging
from collections.abc import Sequence

from lungseg.config import Tta
from lungseg.config.class_names import partner_of, without_partner
from lungseg.errors import InputError, SettingsError
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import stored_thresholds
from lungseg.plurals import counted

logger = logging.getLogger(__name__)


def find_models(paths: Sequence[str], custom_network: str = "") -> list[Checkpoint]:
    """Find the models by name, folder or address, as in `sources.resolve`. All have the same classes and preprocessing.

    custom_network: the network of the user's own code that checkpoints may name, written as `package.module:Name`.

    Raises:
        LungsegError: a model cannot be used, or the classes or the preprocessing differ.

    """
    folders = [sources.resolve(path) for path in paths]
    by_digest = {model.digest: model for folder in folders for model in checkpoint.find_all(folder)}
    models = list(by_digest.values())
    checkpoint.require_custom_code(models, custom_network)
    for model in models:
        checkpoint.require_tensors(model)
        if not model.config.get("trained", True):
            logger.warning(
                "%s: trained for %d of %s so far", model.folder, model.epoch, counted(model.config["epochs"], "epoch")
            )
        _require_same_classes(model, models[0])
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


def _require_same_classes(model: Checkpoint, first: Checkpoint) -> None:
    """Check that the probabilities of two models can be averaged.

    Raises:
        InputError: they have other classes, or these in another order.

    """
    if model.preprocess.classes != first.preprocess.classes:
        described = (f"{one.folder} segments {', '.join(one.preprocess.classes)}" for one in (first, model))
        raise InputError(f"{'; '.join(described)}: pass models of the same classes in the same order")


def require_flippable(models: Sequence[Checkpoint], tta: Tta) -> None:
    """Check that mirrored predictions can be averaged.

    Raises:
        SettingsError: a class is on one side of the patient, and the models lack that of the other side.

    """
    if tta == "flip" and (alone := without_partner(models[0].preprocess.classes)):
        raise SettingsError(
            f"--tta flip: in a mirrored image {alone[0]} becomes {partner_of(alone[0])}, which the "
            "model does not segment: pass --tta none"
        )


def mean_thresholds(models: Sequence[Checkpoint], threshold: float | None = None) -> dict[str, float]:
    """Return the threshold of each class: the given one, else the mean of the models' thresholds."""
    classes = models[0].preprocess.classes
    if threshold:
        return dict.fromkeys(classes, threshold)
    own = [stored_thresholds(model) for model in models]
    return {name: sum(one[name] for one in own) / len(own) for name in classes}
