"""A study that loses a worker, is ended by Ctrl-C, and loses all of Ray: the same command completes it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from lungseg import storage
from lungseg.config.command_line import parse
from lungseg.model import checkpoint
from lungseg.pipelines import train
from tests.pipelines.processes import family, kill, running, title

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, RUNS = 16, 2
TIMES = {"train_s", "epoch_s", "images_per_second", "rank_images_per_second", "device_wait_share"}
OPTIONS = {
    "--folds": "2",
    "--protocols": "pooled",
    "--model.encoder": "tu-mobilenetv3_small_100",
    "--model.weights": "none",
    "--only-folds": "0 1",
    "--loader.batch-size": "2",
    "--epochs": str(EPOCHS),
    "--save-steps": "1",
    "--optim.ema-decay": "0.9",
    "--workers-per-run": "1",
    "--runs-at-once": "2",
    # Runs in this process do not ask a cluster what `auto` means.
    "--device": "cpu",
    "--compute.threads": "1",
    "--loader.processes": "0",
}


# In the background a shell ignores SIGINT, and every process that it starts would ignore it too.
_HEED_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def arguments(prepared: Path, out: Path) -> list[str]:
    options = [word for name, value in OPTIONS.items() for word in (name, *value.split())]
    return ["demo", "--data", str(prepared), "--out", str(out), *options]


def study(prepared: Path, out: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    job = [sys.executable, str(ROOT / "jobs" / "train.py"), *arguments(prepared, out)]
    return running([sys.executable, "-c", _HEED_SIGINT, *job], out / "job.log", WANDB_MODE="disabled")


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    assert process.wait(timeout=240) == 0, (out / "job.log").read_text()


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in family(process) if "RayTrainWorker" in title(child)]


def epochs_done(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in out.glob("demo/*/metrics.jsonl"))


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool], out: Path) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, (out / "job.log").read_text()
        assert time.monotonic() < deadline, (out / "job.log").read_text()
        time.sleep(0.05)


def wait_for_another_epoch(process: subprocess.Popen[bytes], out: Path, chance: random.Random) -> None:
    """Wait until all runs are at work and one more epoch is done, and then for a random part of an epoch."""
    wait_for(process, lambda: len(workers(process)) == RUNS, out)
    before = epochs_done(out)
    wait_for(process, lambda: epochs_done(out) > before, out)
    time.sleep(chance.uniform(0.0, 0.5))


def result(out: Path) -> dict[str, Any]:
    """Return everything that a study writes except times: digests of weights, metrics and tested images of each run."""
    results: dict[str, Any] = {"study.parquet": storage.read_table(str(out / "demo" / "study.parquet")).to_pylist()}
    content = json.loads((out / "demo" / "study.json").read_text())
    results["study.json"] = {name: content[name] for name in ("runs", "states", "results")}
    for folder in (out / "demo" / name for name in content["runs"]):
        summary = storage.read_json(str(folder / "run.json"))
        del summary["settings"]["out"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
        results[folder.name] = [
            checkpoint.find_all(str(folder))[0].config["digests"]["model.safetensors"],
            [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
            storage.read_table(str(folder / "tested.parquet")).to_pylist(),
            summary,
        ]
    assert len(results) == 2 + RUNS
    return results


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_interrupted_study_ends_as_undisturbed(
    in_this_process: None, prepared: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    train.run(parse("train", arguments(prepared, undisturbed)))  # type: ignore[arg-type]
    out.mkdir()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    # A killed worker is replaced while the study continues. Then Ctrl-C ends the job and its Ray.
    with study(prepared, out) as process:
        wait_for_another_epoch(process, out, chance)
        kill(workers(process)[:1])
        wait_for_another_epoch(process, out, chance)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    last = (out / "job.log").read_text().splitlines()[-1]
    assert last.endswith("interrupted: the same command continues where this one stopped")
    # All of Ray is killed, and the job fails.
    with study(prepared, out) as process:
        wait_for_another_epoch(process, out, chance)
        kill(family(process)[1:])
        assert process.wait(timeout=120) != 0
    assert not list(out.glob("demo/*/run.json")), f"the runs were too short to be killed (seed {seed})"
    for metrics in out.glob("demo/*/metrics.jsonl"):  # a kill while Ray writes its record leaves it empty
        record = out / "demo" / ".ray-train" / metrics.parent.name / "checkpoint_manager_snapshot.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("")
    with study(prepared, out) as process:
        finish(process, out)
    assert result(out) == result(undisturbed), f"seed {seed}"
