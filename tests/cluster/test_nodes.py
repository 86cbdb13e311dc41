"""Nodes that are lost while a job works on them: the job continues on the others, with the same results."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from lungseg import storage
from lungseg.config.command_line import parse
from lungseg.imaging import phantom
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import load_weights
from lungseg.pipelines import infer, prepare, train
from lungseg.storage.files import digest_bytes
from tests.cluster.nodes import Nodes, RunningJob
from tests.pipelines.processes import title
from tests.shared_fixtures import steady

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS = 8
TRAIN = {
    "--folds": "2",
    "--only-folds": "0",
    "--protocols": "pooled",
    "--model.encoder": "tu-test_efficientnet",
    "--model.weights": "none",
    "--loader.batch-size": "2",
    "--compute.batch-norm": "frozen",
    "--workers-per-run": "2",
    "--save-steps": "1",
    "--device": "cpu",
    "--epochs": str(EPOCHS),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # A node counts as lost after 10 s without an answer, because on a busy machine answers are seconds late.
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "10")
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.close()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for a job that is still at work when a node is lost."""
    folder = tmp_path_factory.mktemp("films") / "films"
    for number in range(48):
        image, mask = phantom.draw(number, "montgomery" if number % 2 else "shenzhen", 384)
        for kind, array in (("images", image), ("masks", mask * 255)):
            path = folder / kind / f"film_{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
    return folder


def lose_a_node(
    nodes: Nodes, job: RunningJob, ready: Callable[[], Any], progress: Callable[[], int], worker: str = ""
) -> None:
    """Kill a node on which the job is at work, and wait for progress; --log-cli-level=INFO shows how long."""
    job.wait_until(ready)
    busy = [i for i in range(nodes.count) if any(worker in title(process) for process in nodes.processes(i))]
    nodes.kill(busy[-1])
    before = progress()
    logger.info("continues after %.1f s", job.wait_until(lambda: progress() > before))


def tars(out: Path) -> dict[str, str]:
    return {path.name: digest_bytes(path.read_bytes()) for path in sorted(out.rglob("*.tar"))}


def prepare_arguments(films: Path, out: Path) -> list[str]:
    return ["archive", "--source", str(films), "--out", str(out / "data"), "--images-per-shard", "3"]


def test_preparation_loses_a_node(ray_cluster: None, nodes: Nodes, films: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "disturbed"
    prepare.run(parse("prepare", prepare_arguments(films, undisturbed)))  # type: ignore[arg-type]
    assert len(tars(undisturbed)) == 16
    nodes.resize(2)
    with nodes.job(out, "prepare.py", *prepare_arguments(films, out)) as job:
        lose_a_node(nodes, job, lambda: len(tars(out)) > 2, lambda: len(tars(out)))
        assert "48" in job.finish()
    assert tars(out) == tars(undisturbed)


def predict_arguments(films: Path, model: Path, out: Path) -> list[str]:
    options = {"--archive": films, "--checkpoint": model, "--out": out / "p", "--part-size": 2, "--batch-size": 2}
    return ["archive", *(str(word) for pair in options.items() for word in pair)]


def parts(out: Path) -> list[Path]:
    return sorted((out / "p").glob("rows/part-*.parquet"))


def predicted_rows(out: Path) -> list[dict[str, Any]]:
    return steady(row for path in parts(out) for row in storage.read_table(str(path)).to_pylist())


def test_inference_loses_a_node(without_ray: None, nodes: Nodes, films: Path, trained: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "disturbed"
    infer.run(parse("infer", predict_arguments(films, trained, undisturbed)))  # type: ignore[arg-type]
    assert len(predicted_rows(undisturbed)) == 48
    nodes.resize(2)
    with nodes.job(out, "infer.py", *predict_arguments(films, trained, out)) as job:
        lose_a_node(nodes, job, lambda: len(parts(out)) > 3, lambda: len(parts(out)))
        job.finish()
    assert predicted_rows(out) == predicted_rows(undisturbed)


def train_arguments(prepared: Path, out: Path, *more: str) -> list[str]:
    options = [word for pair in TRAIN.items() for word in pair]
    return ["small", "--data", str(prepared), "--out", str(out), "--study", "s", *options, *more]


def metrics(out: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl without times."""
    lines = [json.loads(line) for path in out.glob("s/*/metrics.jsonl") for line in path.read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.endswith(("_s", "_per_second", "_share"))}
        for line in lines
    ]


def train_with_loss(nodes: Nodes, prepared: Path, out: Path, *more: str) -> None:
    """Train a run of two workers, of which one is lost with its node."""
    with nodes.job(out, "train.py", *train_arguments(prepared, out, *more)) as job:
        lose_a_node(nodes, job, lambda: len(metrics(out)) > 1, lambda: len(metrics(out)), "RayTrainWorker")
        job.finish()


@pytest.fixture(scope="module")
def undisturbed_training(ray_cluster: None, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed-training")
    train.run(parse("train", train_arguments(prepared, out)))  # type: ignore[arg-type]
    return out


def test_elastic_training_continues_on_the_ranks_left(
    nodes: Nodes, prepared: Path, undisturbed_training: Path, tmp_path: Path
) -> None:
    nodes.resize(2)
    train_with_loss(nodes, prepared, tmp_path, "--min-workers", "1")
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    # Every step has the same images, but one rank adds up their losses in another order than two.
    for line, expected in zip(lines, metrics(undisturbed_training), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-3)


def test_training_loses_a_node_and_uses_a_spare_one(
    nodes: Nodes, prepared: Path, undisturbed_training: Path, tmp_path: Path
) -> None:
    nodes.resize(3)
    train_with_loss(nodes, prepared, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed_training)
    (folder,), (expected_folder,) = ((out / "s").glob("pooled*") for out in (tmp_path, undisturbed_training))
    tested, expected_tested = (
        [{**row, "run": ""} for row in storage.read_table(str(path / "tested.parquet")).to_pylist()]
        for path in (folder, expected_folder)
    )
    assert tested == expected_tested
    weights, expected = (load_weights(checkpoint.find_all(str(path))[0]) for path in (folder, expected_folder))
    assert all(expected[name].equal(weights[name]) for name in expected)
