"""Session fixtures of several packages: a Ray cluster of two CPUs, a tiny trained study, an S3 bucket.

Heavy libraries are imported inside the fixtures, so that tests that need none of them start at once.
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lungseg import storage
from lungseg.config import InferSettings, LoaderSettings, ModelSettings, OptimSettings, TrainSettings
from lungseg.dataset import catalog, folds

EPOCHS = 14  # until masks differ between images: an untrained model predicts equal masks
_UNSTEADY = ("seconds",)


def steady(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the values of prediction rows that are identical in every run."""
    return [{name: value for name, value in row.items() if name not in _UNSTEADY} for row in rows]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with two CPUs, independent of the machine."""
    import ray

    from lungseg.cluster import connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # the end of a run is noticed earlier
        start = ray.init

        def two_cpus(**options: object) -> object:
            return start(**{**options, "num_cpus": 2, "include_dashboard": False})

        patch.setattr(connection.ray, "init", two_cpus)
        connection.connect()
        yield
        ray.shutdown()


def _train(prepared: Path, folder: Path, fold: int) -> None:
    import torch

    from lungseg.training import run_loop, run_state, study_data
    from lungseg.training.run import Run

    settings = TrainSettings(
        data=tuple(catalog.find_datasets([str(prepared)])),
        folds=2,
        model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
        loader=LoaderSettings(batch_size=2),
        optim=OptimSettings(lr=5e-3),
        epochs=EPOCHS,
        wandb={"mode": "disabled"},  # type: ignore[arg-type]
    )
    data = study_data.open_training_data(settings.data)
    (plan,) = folds.plan_study(("pooled",), [part.name for part in data], 2, (fold,), 0)
    run = Run(settings, plan, settings.data, folder.name, str(folder))
    run_loop.finish(run_state.start(run, torch.device("cpu")), lambda _: None)


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained in this process until it separates lungs from noise; read-only."""
    folder = tmp_path_factory.mktemp("study") / "pooled-fold0-test"
    _train(prepared, folder, 0)
    return folder


@pytest.fixture(scope="session")
def study(prepared: Path, trained: Path) -> Path:
    """A study of that run and a second one, trained on the test images of the first; read-only."""
    _train(prepared, trained.with_name("pooled-fold1-test"), 1)
    names = ["pooled-fold0-test", "pooled-fold1-test"]
    storage.write_json(str(trained.with_name("study.json")), {"runs": names})
    return trained.parent


@pytest.fixture(scope="session")
def predicted(archive: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of the archive, computed in this process with three images per part; read-only."""
    from lungseg.pipelines import infer, infer_on_cluster

    out = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_on_cluster, "predict_on_cluster", lambda job, rows, _: infer.predict_locally(job, rows))
        infer.run(
            InferSettings(archive=str(archive), checkpoint=(str(trained),), out=str(out), part_size=3, batch_size=2)
        )
    return out


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of an inference are predicted in this process."""
    from lungseg.pipelines import infer, infer_on_cluster

    monkeypatch.setattr(infer_on_cluster, "predict_on_cluster", lambda job, rows, _: infer.predict_locally(job, rows))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 bucket on a local server; its address and keys are in the environment."""
    with s3_bucket(monkeypatch) as uri:
        yield uri


def set_bucket_address(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Put the address of an object store on this machine, and keys for it, into the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start an S3 server, put its address and keys into the environment, and yield the URI of a bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_bucket_address(monkeypatch, port)
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        filesystem, _ = pafs.FileSystem.from_uri("s3://hospital?allow_bucket_creation=true")
        filesystem.create_dir("hospital")
        yield "s3://hospital"
    finally:
        server.kill()
        server.wait()
