"""Refuse an exported model whose masks are not those of torch, on real images and with its metadata alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lungseg.arrays import F32, U8
from lungseg.config import InferSettings, PostprocessSettings
from lungseg.errors import CheckpointError, InputError, LungsegError, first_line
from lungseg.imaging.run_lengths import Runs
from lungseg.inference.backends import Network, Runtime, open_network
from lungseg.inference.class_masks import make_class_masks
from lungseg.inference.comparison import compare
from lungseg.inference.ensemble import Predictor
from lungseg.inference.inputs import list_items
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, from_levels, open_item, to_levels
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_classes import stored_thresholds
from lungseg.model.graph_file import read_metadata
from lungseg.versions import versions

MAX_CHANGED = 1e-4
"""Largest share of pixels whose mask may differ from that of torch, fp32."""
MAX_MEAN_LOSS = 0.002
"""Largest loss of the mean Dice with the references, int8."""
MAX_LOSS = 0.01
"""Largest loss of the Dice of any image, int8."""
_POSTPROCESS = PostprocessSettings()  # as in InferSettings


@dataclass(frozen=True)
class Verdict:
    """How the masks of an exported model compare with those of torch.

    changed: share of pixels that differ, over all images; most_changed: of one image. compared: images with a
    reference. dice, torch_dice: their means; worst_loss: the largest loss of one image; None without references.
    problem: why the export is refused, "" if it is not. classes: of several, the verdict on each; the values above are
    then those of the class that differs most.
    """

    backend: Runtime
    version: str
    images: int
    changed: float
    most_changed: float
    compared: int = 0
    dice: float | None = None
    torch_dice: float | None = None
    worst_loss: float | None = None
    problem: str = ""
    classes: dict[str, "Verdict"] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the fields for the report."""
        values = asdict(self)
        classes = {name: _class_values(one) for name, one in values.pop("classes").items()}
        return {**values, **({"classes": classes} if classes else {})}


def _class_values(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("backend", "version", "classes")}


def list_images(archive: str, source: Checkpoint, limit: int) -> list[Item]:
    """List at most so many images of an archive, evenly spread over it.

    Raises:
        InputError: it has no image, or was prepared with other settings.

    """
    return spread(list(list_items(InferSettings(archive=archive), source.preprocess)), limit)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most so many items, evenly spread."""
    count = min(limit, len(items))
    return [items[number * len(items) // count] for number in range(count)]


class ExportGate:
    """Compares exported files of a model with the model in torch, on the same images."""

    def __init__(self, source: Checkpoint, items: Sequence[Item], custom_network: str = "") -> None:
        """Segment the images with torch.

        Raises:
            InputError: no image can be used.

        """
        options = PredictOptions(precision="fp32", custom_network=custom_network)
        self._source, self._items = source, items
        self._expected = _masks(source, Predictor(source, options), items)
        if not any(self._expected):
            raise InputError("none of the images of --images can be used: pass others")

    def compare(self, network: Network, runtime: Runtime, model: Checkpoint | None = None) -> Verdict:
        """Compare a network with torch, without a judgement. model: whose settings prepare the images."""
        masks = _masks(model or self._source, network, self._items)
        verdicts = {
            name: _compare(_of_class(masks, name), _of_class(self._expected, name), _refused(runtime, ""))
            for name in self._source.preprocess.classes
        }
        most_changed = max(verdicts.values(), key=lambda verdict: verdict.changed)
        return replace(most_changed, classes=verdicts if len(verdicts) > 1 else {})

    def judge(self, path: str, runtime: Runtime) -> Verdict:
        """Judge an exported file.

        It is opened as a user would: its metadata alone decides how images are prepared and masks are made.
        """
        try:
            exported = checkpoint.verify(path)
            verdict = self.compare(_FileNetwork(path, runtime, len(exported.preprocess.classes)), runtime, exported)
        except LungsegError as error:
            return _refused(runtime, str(error))
        find_problem = _int8_problem if read_metadata(path)["precision"] == "int8" else _fp32_problem
        if not verdict.classes:
            return replace(verdict, problem=find_problem(verdict))
        judged = {name: replace(one, problem=find_problem(one)) for name, one in verdict.classes.items()}
        problems = [f"{name}: {one.problem}" for name, one in judged.items() if one.problem]
        return replace(verdict, problem="; ".join(problems), classes=judged)


class _FileNetwork:
    """The network of a file whose metadata may not fit its graph."""

    def __init__(self, path: str, runtime: Runtime, classes: int) -> None:
        self._network, self._runtime, self._classes = open_network(path, runtime), runtime, classes

    def __call__(self, images: U8) -> F32:
        """Predict images.

        Raises:
            CheckpointError: the graph does not take them, or its result has another shape.

        """
        try:
            result = self._network(images)
        except MemoryError:
            raise
        except Exception as error:  # the exceptions of the backends have no class in common
            raise CheckpointError(f"{self._runtime} cannot run it with its metadata: {first_line(error)}") from None
        batch, _, *square = images.shape
        if result.shape != (batch, self._classes, *square):
            raise CheckpointError(f"{self._runtime} gives an array of {result.shape} for images of {images.shape}")
        return result


def _refused(runtime: Runtime, problem: str) -> Verdict:
    return Verdict(runtime, versions([runtime])[runtime], 0, 1.0, 1.0, problem=problem)


@dataclass(frozen=True)
class _Mask:
    mask: Runs
    dice: float | None


_Masks = dict[str, _Mask]
"""The mask of each class of an image."""


def _masks(model: Checkpoint, network: Network, items: Sequence[Item]) -> list[_Masks | None]:
    """Segment items one by one; None for images that cannot be used."""
    thresholds = stored_thresholds(model)
    opened = (open_item(item, model.preprocess) for item in items)
    return [_masks_of(image, network, thresholds) for image in opened]


def _masks_of(image: OpenedImage, network: Network, thresholds: Mapping[str, float]) -> _Masks | None:
    if image.square is None or image.geometry is None:
        return None
    probability: F32 = from_levels(to_levels(network(image.square[None, None])[0]))
    prediction = Prediction(probability, 1, seen_in_training=False)
    masks = make_class_masks(image, image.geometry, prediction, thresholds, _POSTPROCESS)
    return {name: _Mask(one.mask, compare(one.mask, one.reference)["dice"]) for name, one in masks.items()}


def _of_class(masks: Sequence[_Masks | None], name: str) -> list[_Mask | None]:
    """Return the masks of a class; none of a file whose metadata has other classes."""
    return [None if of_image is None else of_image.get(name) for of_image in masks]


def _compare(masks: Sequence[_Mask | None], expected: Sequence[_Mask | None], verdict: Verdict) -> Verdict:
    pairs = [(one, other) for one, other in zip(masks, expected, strict=True) if one and other]
    if len(pairs) < sum(one is not None for one in expected):
        return verdict  # other settings, which reject images
    differing = [_differing(one.mask, other.mask) for one, other in pairs]
    sizes = [other.mask.shape[0] * other.mask.shape[1] for _, other in pairs]
    scores = [(one.dice, other.dice) for one, other in pairs if one.dice is not None and other.dice is not None]
    verdict = replace(
        verdict,
        images=len(pairs),
        changed=sum(differing) / sum(sizes),
        most_changed=max(count / size for count, size in zip(differing, sizes, strict=True)),
    )
    if not scores:
        return verdict
    dice, torch_dice = np.array(scores, np.float64).T
    losses = torch_dice - dice
    means = {"dice": float(dice.mean()), "torch_dice": float(torch_dice.mean()), "worst_loss": float(losses.max())}
    return replace(verdict, compared=len(scores), **means)  # type: ignore[arg-type]


def _differing(one: Runs, other: Runs) -> int:
    common = one.count_common(other) if one.shape == other.shape else 0
    return one.area + other.area - 2 * common


def _fp32_problem(verdict: Verdict) -> str:
    if verdict.changed <= MAX_CHANGED:
        return ""
    return f"{verdict.changed:.4%} of the pixels of its masks differ from those of torch, more than {MAX_CHANGED:.2%}"


def _int8_problem(verdict: Verdict) -> str:
    if verdict.dice is None or verdict.torch_dice is None or verdict.worst_loss is None:
        return "no image of --images has a mask, so the loss of accuracy is unknown"
    loss = verdict.torch_dice - verdict.dice
    if loss > MAX_MEAN_LOSS:
        return f"it loses {loss:.4f} of the mean Dice, more than {MAX_MEAN_LOSS}"
    if verdict.worst_loss > MAX_LOSS:
        return f"it loses {verdict.worst_loss:.4f} of the Dice of an image, more than {MAX_LOSS}"
    return ""
