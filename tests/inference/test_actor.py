"""Actors: squares become probabilities, with the time in which the models were busy."""

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

from lungseg.config import InferSettings, PostprocessSettings
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob, open_part, parse_opened
from lungseg.inference.ensemble import Ensemble
from lungseg.inference.items import Item, PredictOptions, from_levels
from lungseg.inference.part_plan import PlannedPart
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
        "tiny",
        ensemble_digest([model]),
        model.preprocess,
        {"lung": 0.5},
        PredictOptions(),
    )


def opened_part(items: list[Item], job: InferenceJob) -> pa.Table:
    packed = PlannedPart.of(0, items, "settings").items
    return open_part(pa.Table.from_pylist([{"number": 0, "items": packed, "digest": "feed"}]), job)


def test_squares_are_kept_for_the_random_field(archive: Path, job: InferenceJob) -> None:
    opened = opened_part([Item(record) for record in sources.discover(str(archive))], job)
    settings = job.settings.model_copy(update={"postprocess": PostprocessSettings(crf=True)})
    predicted = PredictPart(replace(job, settings=settings))(opened)
    assert predicted.column("square") == opened.column("square")


def test_probabilities_replace_squares(archive: Path, job: InferenceJob) -> None:
    items = [Item(record) for record in sources.discover(str(archive))]
    broken = replace(items[2], record=replace(items[2].record, image_uri=str(archive / "none.png")))
    items[2] = broken
    opened = opened_part(items, job)
    began = time.time()
    predicted = PredictPart(job)(opened)
    assert "square" not in predicted.column_names
    assert predicted.column("opened") == opened.column("opened")
    rows = predicted.to_pylist()
    assert [row["probability"] is None for row in rows] == [i == 2 for i in range(len(items))]
    images = [parse_opened(row) for row in opened.to_pylist()]
    ensemble = Ensemble([checkpoint.find_all(job.checkpoints[0])[0]])
    for row, image in zip(rows, images, strict=True):
        if image.square is None:
            assert row["predicted"] is None
            continue
        (expected,) = ensemble([image.square], [image.record.pixel_digest])
        levels = np.frombuffer(row["probability"], np.uint16).reshape(1, *image.square.shape)
        np.testing.assert_allclose(from_levels(levels), expected.probability, atol=2e-5)
        assert json.loads(row["predicted"])["seen_in_training"] is expected.seen_in_training
    for row in rows:
        first, last = json.loads(row["busy"])
        assert began <= first <= last <= time.time()


def test_a_profiled_actor_predicts_the_same_and_writes_a_trace(archive: Path, job: InferenceJob) -> None:
    opened = opened_part([Item(record) for record in sources.discover(str(archive))], job)
    settings = job.settings.model_copy(update={"profile": True})
    actor, plain = PredictPart(replace(job, settings=settings)), PredictPart(job)
    for _ in range(2):  # only the first part is recorded
        assert actor(opened).column("probability") == plain(opened).column("probability")
        (path,) = Path(job.out).glob("profile/*")
        assert path.name == "part-000000.json"
        before = path.stat().st_mtime_ns
    assert path.stat().st_mtime_ns == before
    trace = json.loads(path.read_text())
    calls = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("lungseg call")}
    assert calls == {"lungseg call 1", "lungseg call 2"}  # of three batches


def test_garbage_collection_is_enabled_after_loading(job: InferenceJob) -> None:
    PredictPart(job)
    assert gc.isenabled()
    PredictPart(replace(job, model_digest="other"))
    assert gc.isenabled()


def test_changed_weights_are_reported_by_each_part(archive: Path, job: InferenceJob) -> None:
    opened = opened_part([Item(record) for record in sources.discover(str(archive))], job)
    rows = PredictPart(replace(job, model_digest="another"))(opened).to_pylist()
    assert len(rows) == opened.num_rows
    assert all("the weights changed while the job ran" in row["result"] for row in rows)


def test_driver_and_cpu_tasks_do_not_import_torch() -> None:
    """Wrong settings are reported at once, and workers without a model start in half the time."""
    code = "import sys\nimport lungseg.pipelines.infer_on_cluster\nprint(*{'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
