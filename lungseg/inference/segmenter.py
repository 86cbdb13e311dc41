"""Segment X-rays in this process, without Ray: the steps of the bulk pipeline for one image or a few."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from lungseg import storage
from lungseg.arrays import Grey
from lungseg.config import PostprocessSettings
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, from_levels, open_image, to_levels
from lungseg.inference.model_selection import find_models, mean_threshold
from lungseg.inference.result import Result
from lungseg.inference.rows import make_row_and_mask
from lungseg.ingest.record_checks import ReadFile
from lungseg.model.checkpoint import ensemble_digest

_POSTPROCESS = PostprocessSettings()
_OPTIONS = PredictOptions()


@dataclass(frozen=True)
class SegmenterSettings:
    """Settings of a segmenter, as in InferSettings. threshold: None for that of the models. key: for pseudonyms."""

    options: PredictOptions = _OPTIONS
    postprocess: PostprocessSettings = _POSTPROCESS
    threshold: float | None = None
    batch_size: int = 16
    key: bytes | None = None


class Segmenter:
    """Loads models once and segments any number of X-rays, from any number of threads."""

    def __init__(self, checkpoints: Sequence[str], settings: SegmenterSettings | None = None) -> None:
        """Load the models by name, folder or address.

        Raises:
            LungsegError: a model cannot be used, or the models do not fit together.

        """
        # torch takes a second: imported only after the folders are found to be models.
        models = find_models(checkpoints)
        from lungseg.inference.ensemble import Ensemble

        self._settings = settings or SegmenterSettings()
        self._preprocess = models[0].preprocess
        threshold = self._settings.threshold or mean_threshold(models)
        self._shared = {"threshold": threshold, "model": ensemble_digest(models)}
        self._ensemble = Ensemble(models, self._settings.options)

    def segment(self, items: Iterable[Item], read: ReadFile = storage.read_bytes) -> Iterator[Result]:
        """Segment items of image files in batches; yield one result for each, in order.

        Problems of an image end in the status, codes and message of its row. read: returns the content of a file.
        """
        remaining = iter(items)
        while batch := list(islice(remaining, self._settings.batch_size)):
            yield from self._segment_batch(batch, read)

    def _segment_batch(self, items: Sequence[Item], read: ReadFile) -> Iterator[Result]:
        from lungseg.inference.ensemble import predict

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
        row, mask = make_row_and_mask(opened, prediction, self._shared, self._settings.postprocess)
        square = None if prediction is None else prediction.probability
        return Result(row, opened.record.spacing_mm, pixels, mask, square, opened.geometry)
