"""What the actors of an inference do: hold the models, and turn the opened images of a part into probabilities."""

import gc
import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lungseg.errors import CheckpointError, LungsegError, TaskResult
from lungseg.inference.cpu_tasks import PROBABILITY_SCALE, InferenceJob, opened_row
from lungseg.inference.items import Prediction
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory

if TYPE_CHECKING:
    from lungseg.inference.ensemble import Ensemble


class PredictPart:
    """An actor that holds the models and predicts part after part. torch is imported as it begins: by actors alone."""

    def __init__(self, job: InferenceJob, threads: int = 0) -> None:
        self._job, self._load_error = job, TaskResult()
        gc.disable()  # all that torch, timm and smp make stays: looking through it is a sixth of their start
        try:
            self._ensemble = _load(job, threads)
        except LungsegError as error:  # returned with every part: if raised here, Ray would restart the actor
            self._load_error = TaskResult(error=error)
        finally:
            gc.enable()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Put probabilities in the squares' place, and say when the models were at work."""
        from lungseg.inference.ensemble import predict

        if self._load_error.error is not None:
            result = pa.array([self._load_error.to_json()] * rows.num_rows, pa.string())
            return rows.set_column(rows.column_names.index("result"), "result", result)
        began = time.time()
        opened = [opened_row(row) for row in rows.select(["opened", "square"]).to_pylist()]
        found = predict(self._ensemble, opened, self._job.settings.batch_size)
        said = [None if one is None else _say(one) for one in found]
        columns = {
            "probability": pa.array(
                [None if one is None else _levels(one).tobytes() for one in found], pa.large_binary()
            ),
            "predicted": pa.array(said, pa.string()),
            "busy": pa.array([json.dumps([began, time.time()])] * rows.num_rows, pa.string()),
        }
        rows = rows.drop_columns(["square"])
        for name, values in columns.items():
            rows = rows.append_column(name, values)
        return rows


def _load(job: InferenceJob, threads: int) -> "Ensemble":
    import torch

    from lungseg.inference.ensemble import Ensemble

    if threads:
        keep_freed_memory()
        torch.set_num_threads(threads)
    found = [checkpoint.verify(folder) for folder in job.checkpoints]
    if checkpoint.ensemble_digest(found) != job.model_digest:  # an actor may start again hours later
        raise CheckpointError(
            f"{job.checkpoints[0]}: its weights changed while the job ran: start it again, with another --out"
        )
    return Ensemble(found, job.options)


def _levels(predicted: Prediction) -> NDArray[np.uint16]:
    levels: NDArray[np.uint16] = np.rint(predicted.probability * PROBABILITY_SCALE).astype(np.uint16)
    return levels


def _say(predicted: Prediction) -> str:
    return json.dumps(
        {"models": predicted.models, "seen_in_training": predicted.seen_in_training, "seconds": predicted.seconds}
    )
