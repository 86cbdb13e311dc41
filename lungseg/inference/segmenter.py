"""Segment X-rays in this process, without Ray: the steps of the bulk pipeline for one image or a few."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import overload

from pydantic import ValidationError

from lungseg import storage
from lungseg.arrays import Grey
from lungseg.config import Backend, InferSettings, PostprocessSettings, Tta
from lungseg.errors import ImageError, SettingsError, first_line
from lungseg.inference.backends.selection import choose_backend
from lungseg.inference.image_inputs import ImageInput, Polarity, open_input
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, from_levels, open_image, to_levels
from lungseg.inference.model_selection import find_models, mean_thresholds, require_flippable
from lungseg.inference.prediction import PredictBatch, predict
from lungseg.inference.result import Result
from lungseg.inference.rows import make_row_and_mask, shared_values
from lungseg.ingest.record_checks import ReadFile
from lungseg.model.checkpoint import Checkpoint, ensemble_digest
from lungseg.model.cpu_memory import paused_garbage_collection
from lungseg.model.sources import model_name
from lungseg.predictions.ranking import highest_usual_doubt

_POSTPROCESS = PostprocessSettings()  # as in InferSettings
_OPTIONS = PredictOptions()


@dataclass(frozen=True)
class SegmenterSettings:
    """Settings of a segmenter, as in InferSettings.

    threshold: None for that of the models. key: for pseudonyms. few_images: too few to convert a model for them.
    """

    options: PredictOptions = _OPTIONS
    backend: Backend = "auto"
    threshold: float | None = None
    batch_size: int = 16
    key: bytes | None = None
    few_images: bool = False


class Segmenter:
    """Loads models once and segments any number of X-rays, from any number of threads."""

    def __init__(self, checkpoints: Sequence[str], settings: SegmenterSettings | None = None) -> None:
        """Load the models by name, folder or address.

        Raises:
            LungsegError: a model cannot be used, or the models do not fit together.

        """
        models = find_models(checkpoints)
        self._settings = settings or SegmenterSettings()
        self._preprocess = models[0].preprocess
        require_flippable(models, self._settings.options.tta)
        self._thresholds = mean_thresholds(models, self._settings.threshold)
        self._shared = shared_values(self._thresholds, model_name(models), ensemble_digest(models))
        with paused_garbage_collection():
            self._ensemble = _load_ensemble(models, self._settings)

    @overload
    def __call__(self, images: ImageInput, polarity: Polarity = "bone-white") -> Result: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[ImageInput], polarity: Polarity = "bone-white") -> list[Result]: ...

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], polarity: Polarity = "bone-white"
    ) -> Result | list[Result]:
        """Segment one image, or a list in batches: paths, bytes of files, NumPy arrays or Pillow images.

        polarity: of arrays and Pillow images; with bone-black, their grey values are inverted first. In a list, a
        rejected image is a result without a mask.

        Raises:
            ImageError: a single image was rejected.
            SettingsError: the polarity is unknown, or is passed for a file, which states its own.
            TypeError: not an image of a supported type.

        """
        if isinstance(images, (list, tuple)):
            names = [f"image-{number}" for number in range(1, len(images) + 1)]
            results = self._segment_inputs(images, names, polarity)
            max_doubt = highest_usual_doubt([result.doubt for result in results])
            return [replace(result, max_doubt=max_doubt) for result in results]
        (result,) = self._segment_inputs([images], ["image"], polarity)  # type: ignore[list-item]
        if not result.ok:
            raise ImageError(result.codes[0], result.reason)
        return result

    def _segment_inputs(self, images: Sequence[ImageInput], names: Sequence[str], polarity: Polarity) -> list[Result]:
        contents: dict[str, bytes] = {}

        def items() -> Iterator[Item]:
            for image, name in zip(images, names, strict=True):
                item, content = open_input(image, polarity, name)
                if content is not None:
                    contents[name] = content
                yield item

        def read(uri: str) -> bytes:
            return contents.pop(uri) if uri in contents else storage.read_bytes(uri)

        results = zip(images, self.segment(items(), read), strict=True)
        return [
            result
            if isinstance(image, (str, os.PathLike))
            else replace(result, file=image if isinstance(image, bytes) else None)
            for image, result in results
        ]

    def segment(self, items: Iterable[Item], read: ReadFile = storage.read_bytes) -> Iterator[Result]:
        """Segment items of image files in batches; yield one result for each, in order.

        Problems of an image end in the status, codes and message of its row. read: returns the content of a file.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, self._settings.batch_size)):
            yield from self._segment_batch(batch, read)

    def _segment_batch(self, items: Sequence[Item], read: ReadFile) -> Iterator[Result]:
        opened = [self._open(item, read) for item in items]
        predictions = predict(self._ensemble, [image for image, _ in opened], self._settings.batch_size)
        for (image, pixels), prediction in zip(opened, predictions, strict=True):
            yield self._finish(image, pixels, prediction)

    def _open(self, item: Item, read: ReadFile) -> tuple[OpenedImage, Grey | None]:
        began = time.perf_counter()
        opened, pixels = open_image(item, self._preprocess, self._settings.key, read)
        return replace(opened, seconds=time.perf_counter() - began), pixels

    def _finish(self, opened: OpenedImage, pixels: Grey | None, prediction: Prediction | None) -> Result:
        if prediction is not None:  # rounded as in the bulk pipeline, so that the masks are identical
            prediction = replace(prediction, probability=from_levels(to_levels(prediction.probability)))
        row, mask = make_row_and_mask(opened, prediction, self._shared, _POSTPROCESS, self._thresholds)
        squares = None if prediction is None else prediction.probability
        upright = None if mask is None else mask.to_mask()
        uri, classes = opened.record.image_uri, tuple(self._thresholds)
        return Result(row, pixels, upright, squares, opened.geometry, uri, classes=classes)


def load(
    *models: str | os.PathLike[str],
    device: str = "cpu",
    tta: Tta = "none",
    threshold: float | None = None,
    batch_size: int = 16,
    backend: Backend = "auto",
) -> Segmenter:
    """Load a model, `lungs` by default; of several models, the mean probability is used.

    models: an installed name, a folder of a model, run or study, or an address, as for `lungseg infer --checkpoint`.
    device: as torch names it, such as cpu or cuda. tta: flip for the mean of an image and its mirror image.
    backend: torch, onnxruntime or openvino; auto is torch on GPUs, and on CPUs the fastest installed one whose masks
    are those of torch. The first use of a model with auto compares them, which takes seconds.

    Raises:
        LungsegError: a model or a setting cannot be used, or the models do not fit together.

    """
    try:
        InferSettings(tta=tta, threshold=threshold, batch_size=batch_size, backend=backend)
    except ValidationError as error:
        raise SettingsError("; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())) from None
    options = PredictOptions(device, tta=tta)
    names = [os.fspath(model) for model in models or ("lungs",)]
    return Segmenter(names, SegmenterSettings(options, backend, threshold, batch_size))


def _load_ensemble(models: Sequence[Checkpoint], settings: SegmenterSettings) -> PredictBatch:
    options = settings.options
    if options.device != "cpu":
        _require_device(options.device)
    options = replace(
        options, backend=choose_backend(settings.backend, models, options, few_images=settings.few_images)
    )
    if options.backend != "torch":
        from lungseg.inference.runtime_ensemble import RuntimeEnsemble

        return RuntimeEnsemble(models, options)
    from lungseg.inference.ensemble import Ensemble  # torch takes a second: only for what is a model

    return Ensemble(models, options)


def _require_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        SettingsError: it cannot.

    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {device}: torch cannot use it ({first_line(error)}): pass cpu or cuda") from None
