"""Quantise a model with images of its training, until it keeps the masks of torch on others of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungseg.errors import InputError
from lungseg.inference.backends import available_threads, open_network
from lungseg.inference.backends.export_gate import MAX_LOSS, MAX_MEAN_LOSS, ExportGate, Verdict, spread
from lungseg.inference.backends.quantise import Quantiser
from lungseg.inference.items import Item, open_item
from lungseg.model.checkpoint import Checkpoint, trained_on

_CALIBRATION_IMAGES, _TRIAL_IMAGES = 40, 20
_MIN_IMAGES = 8  # to calibrate on
_MARGIN = 0.5  # share of the limits that the trial allows, as the gate has other images
# Share of the pixels that the trial allows to change. On images of the training, errors in both directions may cancel
# each other in the Dice, so that a poor quantisation keeps it, and loses much on other images.
_MAX_TRIAL_CHANGED = 0.001


@dataclass(frozen=True)
class Int8Images:
    """Items of an archive. training: that the model was trained on; others: for the gate."""

    training: list[Item]
    others: list[Item]


def divide_items(items: Sequence[Item], source: Checkpoint) -> Int8Images:
    """Divide items by whether the model was trained on them.

    Raises:
        InputError: too few are of its training.

    """
    known = trained_on(source)
    divided = Int8Images([], [])
    for item in items:
        digest = item.record.pixel_digest or open_item(item, source.preprocess).record.pixel_digest
        (divided.training if digest in known else divided.others).append(item)
    if len(divided.training) < _MIN_IMAGES:
        raise InputError(
            f"--int8 calibrates on images of the training: --images has {len(divided.training)} of them, expected "
            f"{_MIN_IMAGES} or more: pass the prepared data that {source.folder} was trained on"
        )
    return divided


def quantise(
    graph: bytes, source: Checkpoint, training: Sequence[Item], folder: Path, custom_network: str = ""
) -> tuple[bytes, dict[str, object]]:
    """Return the graph in int8, and how it was made, for the metadata.

    Raises:
        CheckpointError: the masks change too much, however many layers stay in float.

    """
    chosen = spread(training, _CALIBRATION_IMAGES + _TRIAL_IMAGES)
    calibration = chosen[::3] + chosen[1::3]
    opened = [open_item(item, source.preprocess).square for item in calibration[:_CALIBRATION_IMAGES]]
    images = np.stack([square for square in opened if square is not None])[:, None]
    trial = ExportGate(source, chosen[2::3][:_TRIAL_IMAGES] or chosen, custom_network)

    def is_close(path: Path) -> bool:
        verdict = trial.compare(open_network(str(path), "onnxruntime"), "onnxruntime")
        verdicts = [*verdict.classes.values()] or [verdict]
        if all(one.dice is None for one in verdicts):
            raise InputError("--int8 needs images with masks: pass prepared data or an archive with masks")
        return all(map(_is_close, verdicts))

    quantised, kept = Quantiser(graph, images, folder, available_threads()).quantise(is_close)
    return quantised, {"calibration_images": len(images), "float_layers": list(kept)}


def _is_close(verdict: Verdict) -> bool:
    """Return whether the masks of a class are so close in the trial that the gate is likely to accept them.

    Where no image of the trial has a mask of the class, the changed pixels decide.
    """
    is_near = verdict.changed <= _MAX_TRIAL_CHANGED
    if verdict.dice is None or verdict.torch_dice is None or verdict.worst_loss is None:
        return is_near
    loss = verdict.torch_dice - verdict.dice
    return is_near and loss <= _MARGIN * MAX_MEAN_LOSS and verdict.worst_loss <= _MARGIN * MAX_LOSS
