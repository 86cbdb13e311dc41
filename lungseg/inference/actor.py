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
from lungseg.inference.items import OpenedImage, Prediction, to_levels
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory, paused_garbage_collection

if TYPE_CHECKING:
    from lungseg.inference.ensemble import Ensemble, PredictBatch


class PredictPart:
    """Actor that holds the models and predicts one part per call. Only actors import torch, when they start."""

    def __init__(self, job: InferenceJob, threads: int = 0) -> None:
        self._job, self._load_error, self._traced = job, TaskResult(), False
        try:
            with paused_garbage_collection():
                self._ensemble = _load(job, threads)
        except LungsegError as error:  # returned with every part: if raised here, Ray would restart the actor
            self._load_error = TaskResult(error=error)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Replace the column `square` by `probability`, `predicted` (JSON) and `busy` (start and end, seconds)."""
        from lungseg.inference.ensemble import predict

        if self._load_error.error is not None:
            result = pa.array([self._load_error.to_json()] * rows.num_rows, pa.string())
            return rows.set_column(rows.column_names.index("result"), "result", result)
        began = time.time()
        images = [parse_opened(row) for row in rows.select(["opened", "square"]).to_pylist()]
        predictions = predict(self._for_part(rows, images), images, self._job.settings.batch_size)
        levels = [
            None if prediction is None else to_levels(prediction.probability).tobytes() for prediction in predictions
        ]
        details = [None if prediction is None else _details(prediction) for prediction in predictions]
        columns = {
            "probability": pa.array(levels, pa.large_binary()),
            "predicted": pa.array(details, pa.string()),
            "busy": pa.array([json.dumps([began, time.time()])] * rows.num_rows, pa.string()),
        }
        rows = rows.drop_columns(["square"])
        for name, values in columns.items():
            rows = rows.append_column(name, values)
        return rows

    def _for_part(self, rows: pa.Table, images: Sequence[OpenedImage]) -> "PredictBatch":
        """Return the ensemble, which records some batches of the first part with images if --profile asks."""
        batches = math.ceil(sum(image.square is not None for image in images) / self._job.settings.batch_size)
        if not (self._job.settings.profile and batches) or self._traced:
            return self._ensemble
        from lungseg.model.step_trace import traced

        self._traced = True
        path = storage.join(self._job.out, "profile", f"part-{rows['number'][0].as_py():06d}.json")
        return traced(self._ensemble, batches, path, self._job.options.device.startswith("cuda"))


def _load(job: InferenceJob, threads: int) -> "Ensemble":
    import torch

    from lungseg.inference.ensemble import Ensemble

    if threads:
        keep_freed_memory()
        torch.set_num_threads(threads)
    checkpoints = [checkpoint.verify(folder) for folder in job.checkpoints]
    if checkpoint.ensemble_digest(checkpoints) != job.model_digest:  # an actor may be restarted hours later
        raise CheckpointError(
            f"{job.checkpoints[0]}: the weights changed while the job ran: start it again with another --out"
        )
    return Ensemble(checkpoints, job.options)


def _details(prediction: Prediction) -> str:
    names = ("models", "seen_in_training", "seconds")
    return json.dumps({name: getattr(prediction, name) for name in names})
