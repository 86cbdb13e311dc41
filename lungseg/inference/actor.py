"""Actors of an inference: they hold the models and predict the opened images of a part."""

import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from lungseg import storage
from lungseg.errors import CheckpointError, LungsegError, TaskResult
from lungseg.inference.cpu_tasks import InferenceJob, parse_opened
from lungseg.inference.items import OpenedImage, PredictedImage
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory, paused_garbage_collection

if TYPE_CHECKING:
    from lungseg.inference.batches import BatchPredictor
    from lungseg.inference.runtime_ensemble import RuntimeBatchPredictor


class PredictPart:
    """Actor that holds the models and predicts one part per call. Only actors import torch, when they start."""

    def __init__(self, job: InferenceJob, threads: int = 0) -> None:
        self._job, self._load_error, self._traced = job, TaskResult(), False
        try:
            with paused_garbage_collection():
                self._predictor = _load(job, threads)
        except LungsegError as error:  # returned with every part: if raised here, Ray would restart the actor
            self._load_error = TaskResult(error=error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Replace the column `square` by `probability`, `predicted` (JSON) and `busy` (start and end, seconds)."""
        if self._load_error.error is not None:
            return _with_error(rows, self._load_error)
        began = time.time()
        images = [parse_opened(row) for row in rows.select(["opened", "square"]).to_pylist()]
        predicted = TaskResult.of(self._predict, rows, images)
        if predicted.error is not None:
            return _with_error(rows, predicted)
        columns = {
            "probability": pa.array([image and image.levels for image in predicted.value], pa.large_binary()),
            "predicted": pa.array([image and image.details for image in predicted.value], pa.string()),
            "busy": pa.array([json.dumps([began, time.time()])] * rows.num_rows, pa.string()),
            "batch_size": pa.array([self._predictor.batch_size] * rows.num_rows, pa.int64()),
        }
        if not self._job.settings.postprocess.crf:
            rows = rows.drop_columns(["square"])
        for name, values in columns.items():
            rows = rows.append_column(name, values)
        return rows

    def _predict(self, rows: pa.Table, images: Sequence[OpenedImage]) -> list[PredictedImage | None]:
        """Predict the images of a part; record some batches of the first part with images if --profile asks."""
        batches = math.ceil(sum(image.square is not None for image in images) / self._job.settings.batch_size)
        if not (self._job.settings.profile and batches) or self._traced:
            return self._predictor(images)
        from lungseg.inference.batches import BatchPredictor
        from lungseg.model.step_trace import traced

        assert isinstance(self._predictor, BatchPredictor), "--profile chooses torch"
        self._traced = True
        path = storage.join(self._job.out, "profile", f"part-{rows['number'][0].as_py():06d}.json")
        on_gpu = self._job.options.device.startswith("cuda")
        return self._predictor(images, traced(self._predictor.start, batches, path, on_gpu))


def _with_error(rows: pa.Table, error: TaskResult) -> pa.Table:
    """Return the rows of a part with the error as their result."""
    result = pa.array([error.to_json()] * rows.num_rows, pa.string())
    return rows.set_column(rows.column_names.index("result"), "result", result)


def _load(job: InferenceJob, threads: int) -> "BatchPredictor | RuntimeBatchPredictor":
    if threads:
        keep_freed_memory()
    checkpoints = [checkpoint.verify(folder) for folder in job.checkpoints]
    if checkpoint.ensemble_digest(checkpoints) != job.model_digest:  # an actor may be restarted hours later
        raise CheckpointError(
            f"{job.checkpoints[0]}: the weights changed while the job ran: start it again with another --out"
        )
    if job.options.backend != "torch":
        from lungseg.inference.runtime_ensemble import RuntimeBatchPredictor, RuntimeEnsemble

        return RuntimeBatchPredictor(RuntimeEnsemble(checkpoints, job.options, threads), job.settings.batch_size)
    import torch

    from lungseg.inference.batches import BatchPredictor
    from lungseg.inference.ensemble import Ensemble

    if threads:
        torch.set_num_threads(threads)
    return BatchPredictor(Ensemble(checkpoints, job.options), job.settings.batch_size)
