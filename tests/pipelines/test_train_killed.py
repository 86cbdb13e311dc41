"""A study as a process of its own: its worker, the job and all of its Ray killed, and started again."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lungseg import storage
from lungseg.model import checkpoint
from tests.pipelines.processes import family, kill, title

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, RUNS = 16, 2
TIMES = {"train_s", "epoch_s", "images_per_s", "wait_share"}
OPTIONS = {
    "--folds": "2",
    "--protocols": "pooled",
    "--model.encoder": "tu-mobilenetv3_small_100",
    "--model.weights": "none",
    "--only-folds": "0 1",
    "--loader.batch": "2",
    "--epochs": str(EPOCHS),
    "--save-steps": "1",
    "--optim.ema": "0.9",
    "--workers-per-run": "1",
    "--runs-at-once": "2",
}


@contextlib.contextmanager
def study(prepared: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the job in a session of its own, and leave nothing of it behind."""
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "demo", "--data", str(prepared), "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "WANDB_MODE": "disabled"}
    said = out / "job.log"
    with said.open("ab") as log:
        process = subprocess.Popen(
            [*command, *" ".join(f"{name} {value}" for name, value in OPTIONS.items()).split()],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(family(process))
        process.wait()


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    assert process.wait(timeout=240) == 0, (out / "job.log").read_text()


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [one for one in family(process) if "RayTrainWorker" in title(one)]


def a_worker(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return workers(process)[:1]


def the_job(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return family(process)[:1]


def all_of_ray(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return family(process)[1:]


def epochs_done(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in out.glob("demo/*/metrics.jsonl"))


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool], out: Path) -> None:
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, (out / "job.log").read_text()
        assert time.monotonic() < deadline, (out / "job.log").read_text()
        time.sleep(0.05)


def kill_after(
    process: subprocess.Popen[bytes],
    victims: Callable[[subprocess.Popen[bytes]], list[psutil.Process]],
    out: Path,
    epochs: int,
    chance: random.Random,
) -> None:
    """Kill at a random moment once the study has done so many more epochs, and before it ends."""
    wait_for(process, lambda: len(workers(process)) == RUNS, out)
    least = epochs_done(out) + epochs
    wait_for(process, lambda: epochs_done(out) >= least, out)
    time.sleep(chance.uniform(0.0, 0.5))
    found = victims(process)
    assert found
    kill(found)


def result(out: Path) -> dict[str, Any]:
    """Everything that a study leaves behind but times: of each run the weights, figures and tested images."""
    found: dict[str, Any] = {"study.parquet": storage.read_table(str(out / "demo" / "study.parquet")).to_pylist()}
    content = json.loads((out / "demo" / "study.json").read_text())
    found["study.json"] = {name: content[name] for name in ("runs", "states", "results")}
    for folder in (out / "demo" / name for name in content["runs"]):
        summary = storage.read_json(str(folder / "run.json"))
        del summary["settings"]["out"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
        found[folder.name] = [
            checkpoint.find_all(str(folder))[0].config["digests"]["model.safetensors"],
            [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
            storage.read_table(str(folder / "tested.parquet")).to_pylist(),
            summary,
        ]
    assert len(found) == 2 + RUNS
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_killed_in_three_ways_ends_as_if_it_had_not_been(prepared: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, out):
        folder.mkdir()
    with study(prepared, whole) as process:
        finish(process, whole)
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    # A dead worker is replaced while the study goes on; then the job dies, and with it its Ray.
    with study(prepared, out) as process:
        kill_after(process, a_worker, out, 1, chance)
        kill_after(process, the_job, out, 1, chance)
        assert process.wait(timeout=60) != 0
    # Ray dies, and the job says so.
    with study(prepared, out) as process:
        kill_after(process, all_of_ray, out, 1, chance)
        assert process.wait(timeout=120) != 0
    assert not list(out.glob("demo/*/run.json")), f"the runs were too short to be killed (seed {seed})"
    with study(prepared, out) as process:
        finish(process, out)
    assert result(out) == result(whole), f"seed {seed}"
