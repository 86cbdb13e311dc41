"""What the actors of an inference do: hold the models, and turn the opened images of a part into probabilities."""

import json
import time

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lungseg.engine import checkpoint
from lungseg.engine.items import Predicted
from lungseg.engine.predictor import Ensemble, digest_of, predict
from lungseg.errors import CheckpointError
from lungseg.pipelines.stages import LEVELS, Job, opened_row


class PredictPart:
    """An actor that holds the models and predicts part after part."""

    def __init__(self, job: Job, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._job = job
        found = [checkpoint.verify(folder) for folder in job.models]
        if digest_of(found) != job.model:  # an actor may start again hours later
            raise CheckpointError(
                f"{job.models[0]}: its weights changed while the job ran: start it again, with another --out"
            )
        self._ensemble = Ensemble(found, job.how)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Put probabilities in the squares' place, and say when the models were at work."""
        began = time.time()
        opened = [opened_row(row) for row in rows.select(["opened", "square"]).to_pylist()]
        found = predict(self._ensemble, opened, self._job.settings.batch)
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


def _levels(predicted: Predicted) -> NDArray[np.uint16]:
    levels: NDArray[np.uint16] = np.rint(predicted.probability * LEVELS).astype(np.uint16)
    return levels


def _say(predicted: Predicted) -> str:
    return json.dumps({"models": predicted.models, "seen": predicted.seen, "seconds": predicted.seconds})
