"""Inference on a cluster: each part returns once, with its result."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from lungseg import storage
from lungseg.cluster.resources import WorkerAllocation
from lungseg.config import InferSettings, PreprocessSettings
from lungseg.errors import ResourceError, SettingsError, TaskResult
from lungseg.inference import part_plan
from lungseg.inference.cpu_tasks import InferenceJob
from lungseg.inference.inputs import list_items
from lungseg.inference.items import PredictOptions
from lungseg.inference.part_plan import PlannedPart
from lungseg.inference.summary import StageTimes
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest
from lungseg.pipelines import infer_on_cluster
from lungseg.pipelines.faulty_devices import GpuActor
from lungseg.pipelines.infer_on_cluster import cpus_per_task, predict_on_cluster

NO_ITEMS = PlannedPart.of(0, [], "").items
SMALL = PreprocessSettings(size=64)


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> InferenceJob:
    settings = InferSettings(out=str(tmp_path), batch_size=2, device="cpu")
    model = checkpoint.find_all(str(trained))[0]
    part_plan.claim(str(tmp_path), {"digest": "feed"})
    thresholds = {"lung": 0.5}
    return InferenceJob(
        settings,
        str(tmp_path),
        (model.folder,),
        "tiny",
        ensemble_digest([model]),
        SMALL,
        thresholds,
        PredictOptions(),
    )


def test_parts_return_once_and_unwritable_ones_as_errors(
    ray_cluster: None, archive: Path, job: InferenceJob, tmp_path: Path
) -> None:
    items = list(list_items(InferSettings(archive=str(archive)), SMALL))
    planned = [PlannedPart.of(number, items[4 * number : 4 * number + 4], "settings") for number in range(2)]
    (tmp_path / "rows" / "part-000001.parquet").mkdir(parents=True)
    times = StageTimes()
    rows = [{"number": part.number, "items": part.items, "digest": part.digest} for part in planned]
    results = sorted(predict_on_cluster(job, rows, times), key=lambda row: row["number"])
    assert [row["number"] for row in results] == [0, 1]
    done, failed = (TaskResult.from_json(row["result"]) for row in results)
    assert "part-000001.parquet: cannot be written" in str(failed.error)
    assert done.unwrap()["images"] == 4
    assert json.loads(done.unwrap()["times"])["predict"] > 0
    assert storage.read_table(str(tmp_path / "rows" / "part-000000.parquet")).num_rows == 4
    assert (times.device, times.actors) == ("cpu", 2)


def test_a_fault_of_a_device_loses_no_part_and_repeats_no_row(
    ray_cluster: None,
    archive: Path,
    job: InferenceJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = tmp_path / "failed"

    class FailsOnce(GpuActor):
        def predict(self, rows: pa.Table) -> pa.Table:
            import torch

            if not failed.exists():
                failed.touch()
                raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
            return super().predict(rows)

    monkeypatch.setattr(infer_on_cluster, "GpuActor", FailsOnce)
    items = list(list_items(InferSettings(archive=str(archive)), SMALL))
    planned = [PlannedPart.of(number, items[4 * number : 4 * number + 4], "settings") for number in range(2)]
    rows = [{"number": part.number, "items": part.items, "digest": part.digest} for part in planned]
    one_actor = replace(job, settings=job.settings.model_copy(update={"workers": 1}))
    results = list(predict_on_cluster(one_actor, rows, StageTimes()))
    assert sorted(row["number"] for row in results) == [0, 1]
    written = [storage.read_table(str(path)).to_pylist() for path in sorted(tmp_path.glob("rows/*.parquet"))]
    names = [row["image_id"] for part in written for row in part]
    assert len(names) == len(set(names)) == len(items)
    assert "its actor is replaced (CUDA error: uncorrectable ECC error" in caplog.text


def test_two_tasks_always_have_room(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def task(cpus: float, gpus: int, largest: int, free: float) -> float:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": largest}}])
        return cpus_per_task(WorkerAllocation(1, int(cpus), gpus), free)

    assert task(1, 0, 64, 32.6) == 0.5
    assert task(8, 1, 16, 60.0) == 1.0
    assert task(1, 1, 1, 8.0) == 0.5
    for free in (0.51, 0.52, 1.0, 1.02, 1.51):
        for gpus in (0, 1):
            share = task(1, gpus, 2, free)
            assert 0 < 2 * share <= free
            assert share != 0.49, "an actor's share: Ray Data would fuse the tasks into the actors"


def test_more_workers_than_cpus_are_refused(ray_cluster: None, job: InferenceJob) -> None:
    job = replace(job, settings=job.settings.model_copy(update={"workers": 64}))
    with pytest.raises(ResourceError, match="64 CPUs needed, the cluster has 2"):
        list(predict_on_cluster(job, [{"number": 0, "items": NO_ITEMS, "digest": ""}], StageTimes()))


def test_stalled_workers_are_started_again_and_end_in_words(
    ray_cluster: None, job: InferenceJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = []

    def stall(*_: object, **__: object) -> None:
        limits.append(ray.data.DataContext.get_current().execution_no_progress_timeout_s)
        raise ExecutionTimeoutError

    monkeypatch.setattr(ray.data, "from_items", stall)
    with pytest.raises(ResourceError, match="no progress in 6 hours"):
        list(predict_on_cluster(job, [{"number": 0, "items": zlib.compress(b"[]"), "digest": ""}], StageTimes()))
    assert limits == [120, 1200, 6 * 3600]
    assert "no progress in 2 minutes: starting the workers again, 1 part left" in caplog.text


def test_fp16_without_a_gpu_is_refused(ray_cluster: None, job: InferenceJob) -> None:
    job = replace(job, settings=job.settings.model_copy(update={"precision": "fp16", "device": "auto"}))
    with pytest.raises(SettingsError, match="--precision fp16 on a CPU"):
        list(predict_on_cluster(job, [{"number": 0, "items": NO_ITEMS, "digest": ""}], StageTimes()))
