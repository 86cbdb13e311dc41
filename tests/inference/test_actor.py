"""What the actors do: probabilities in the squares' place, and when the models were at work."""

import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lungseg.config import InferSettings
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import PROBABILITY_SCALE, InferenceJob, open_part, opened_row
from lungseg.inference.ensemble import Ensemble
from lungseg.inference.items import Item, PredictOptions
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> InferenceJob:
    model = checkpoint.find_all(str(trained))[0]
    return InferenceJob(
        InferSettings(batch_size=3),
        str(tmp_path),
        (model.folder,),
        ensemble_digest([model]),
        model.preprocess,
        0.5,
        PredictOptions(),
    )


def opened_part(items: list[Item], job: InferenceJob) -> pa.Table:
    text = json.dumps([item.to_dict() for item in items])
    return open_part(pa.Table.from_pylist([{"number": 0, "items": text, "digest": "feed"}]), job)


def test_probabilities_come_in_the_squares_place(archive: Path, job: InferenceJob) -> None:
    items = [Item(record) for record in sources.discover(str(archive))]
    broken = replace(items[2], record=replace(items[2].record, image_uri=str(archive / "none.png")))
    items[2] = broken
    opened = opened_part(items, job)
    began = time.time()
    found = PredictPart(job)(opened)
    assert "square" not in found.column_names
    assert found.column("opened") == opened.column("opened")
    rows = found.to_pylist()
    assert [row["probability"] is None for row in rows] == [i == 2 for i in range(len(items))]
    squares = [opened_row(row) for row in opened.to_pylist()]
    ensemble = Ensemble([checkpoint.find_all(job.checkpoints[0])[0]])
    for row, one in zip(rows, squares, strict=True):
        if one.square is None:
            assert row["predicted"] is None
            continue
        (expected,) = ensemble([one.square], [one.record.pixel_digest])
        levels = np.frombuffer(row["probability"], np.uint16).reshape(one.square.shape)
        np.testing.assert_allclose(levels / PROBABILITY_SCALE, expected.probability, atol=2e-5)
        assert json.loads(row["predicted"])["seen_in_training"] is expected.seen_in_training
    for row in rows:
        first, last = json.loads(row["busy"])
        assert began <= first <= last <= time.time()


def test_an_actor_collects_garbage_again_once_its_models_are_there(job: InferenceJob) -> None:
    PredictPart(job)
    assert gc.isenabled()
    PredictPart(replace(job, model_digest="other"))
    assert gc.isenabled()


def test_weights_that_changed_are_told_by_the_parts(archive: Path, job: InferenceJob) -> None:
    opened = opened_part([Item(record) for record in sources.discover(str(archive))], job)
    found = PredictPart(replace(job, model_digest="another"))(opened).to_pylist()
    assert len(found) == opened.num_rows
    assert all("its weights changed while the job ran" in row["result"] for row in found)


def test_whoever_opens_finishes_and_plans_needs_no_torch() -> None:
    """Plain mistakes are told at once, and workers that hold no model start in half the time."""
    code = "import sys\nimport lungseg.pipelines.infer_on_cluster\nprint(*{'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
