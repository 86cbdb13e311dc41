"""Nodes that are lost while a job works on them: it goes on with the others, and the results are the same."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from lungseg import storage
from lungseg.imaging import phantom
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import load_weights
from lungseg.storage.files import digest_bytes
from tests.cluster.nodes import Nodes, RunningJob
from tests.pipelines.processes import title
from tests.shared_fixtures import steady

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TRAIN = {
    "--folds": "2",
    "--only-folds": "0",
    "--protocols": "pooled",
    "--model.encoder": "tu-test_efficientnet",
    "--model.weights": "none",
    "--loader.batch": "2",
    "--compute.batch-norm": "frozen",
    "--workers-per-run": "2",
    "--save-steps": "1",
    "--device": "cpu",
}


@pytest.fixture
def nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # A lost machine is noticed by its silence: in 10 s here, for a busy machine of tests is late by seconds.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "10")
    found = Nodes(request.param)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures for a job that is still at work when its node is lost."""
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
    """Kill a node once the job is at work there, and wait until it goes on; --log-cli-level=INFO shows how long."""
    job.wait_until(ready)
    busy = [i for i in range(nodes.count) if any(worker in title(one) for one in nodes.processes(i))]
    nodes.kill(busy[-1])
    before = progress()
    logger.info("goes on after %.1f s", job.wait_until(lambda: progress() > before))


def tars(out: Path) -> dict[str, str]:
    return {path.name: digest_bytes(path.read_bytes()) for path in sorted(out.rglob("*.tar"))}


def prepare(nodes: Nodes, films: Path, out: Path, lose: bool = False) -> dict[str, str]:
    words = ("--source", str(films), "--out", str(out / "data"), "--images-per-shard", "3")
    with nodes.job(out, "prepare.py", "archive", *words) as job:
        if lose:
            lose_a_node(nodes, job, lambda: len(tars(out)) > 2, lambda: len(tars(out)))
        assert "48" in job.finish()
    return tars(out)


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_preparation_loses_a_node(nodes: Nodes, films: Path, tmp_path: Path) -> None:
    undisturbed = prepare(nodes, films, tmp_path / "undisturbed")
    assert len(undisturbed) == 16
    assert prepare(nodes, films, tmp_path / "disturbed", lose=True) == undisturbed


def train(nodes: Nodes, prepared: Path, out: Path, *words: str, lose: bool = False) -> Any:
    """Train a run of two workers: its weights and the lines of its metrics, without times."""
    options = [word for pair in TRAIN.items() for word in pair]
    common = ("train.py", "small", "--data", str(prepared), "--out", str(out), "--study", "s")

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for path in out.glob("s/*/metrics.jsonl") for line in path.read_text().splitlines()]

    with nodes.job(out, *common, *options, *words) as job:
        if lose:
            lose_a_node(nodes, job, lambda: len(lines()) > 1, lambda: len(lines()), "RayTrainWorker")
        job.finish()
    (folder,) = (out / "s").glob("pooled*")
    found = checkpoint.find_all(str(folder))[0]
    shown = [{key: value for key, value in line.items() if not key.endswith(("_s", "wait_share"))} for line in lines()]
    tested = storage.read_table(str(folder / "tested.parquet")).to_pylist()
    return load_weights(found), shown, [{**row, "run": ""} for row in tested]


@pytest.mark.parametrize("nodes", [3], indirect=True)
def test_training_loses_a_node_and_goes_on_on_a_spare_one(nodes: Nodes, prepared: Path, tmp_path: Path) -> None:
    weights, lines, tested = train(nodes, prepared, tmp_path / "undisturbed", "--epochs", "60")
    found = train(nodes, prepared, tmp_path / "disturbed", "--epochs", "60", lose=True)
    assert found[1:] == (lines, tested)
    assert all(weights[name].equal(found[0][name]) for name in weights)


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_elastic_training_goes_on_with_the_ranks_that_are_left(nodes: Nodes, prepared: Path, tmp_path: Path) -> None:
    words = ("--epochs", "16", "--min-workers", "1")
    _, lines, _ = train(nodes, prepared, tmp_path / "undisturbed", *words)
    _, found, _ = train(nodes, prepared, tmp_path / "disturbed", *words, lose=True)
    assert [line["epoch"] for line in found] == list(range(1, 17))
    for mine, theirs in zip(found, lines, strict=True):  # the same images in the same steps, summed otherwise
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def predict(nodes: Nodes, films: Path, model: Path, out: Path, lose: bool = False) -> list[dict[str, Any]]:
    words = (
        "--archive",
        str(films),
        "--checkpoint",
        str(model),
        "--out",
        str(out / "p"),
        "--part",
        "2",
        "--batch",
        "2",
    )

    def parts() -> list[Path]:
        return sorted((out / "p").glob("part-*.parquet"))

    with nodes.job(out, "infer.py", "archive", *words) as job:
        if lose:
            lose_a_node(nodes, job, lambda: len(parts()) > 3, lambda: len(parts()))
        job.finish()
    return steady(row for path in parts() for row in storage.read_table(str(path)).to_pylist())


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_inference_loses_a_node(
    nodes: Nodes,
    films: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    undisturbed = predict(nodes, films, trained, tmp_path / "undisturbed")
    assert len(undisturbed) == 48
    assert predict(nodes, films, trained, tmp_path / "disturbed", lose=True) == undisturbed
