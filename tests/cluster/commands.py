"""The five jobs on a few small images, and their results in a form that can be compared between two folders."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungseg import storage
from lungseg.config.command_line import parse
from lungseg.config.recipes import Job
from lungseg.model import checkpoint
from tests.shared_fixtures import steady

ROOT = Path(__file__).resolve().parents[2]
JOBS: tuple[Job, ...] = ("prepare", "train", "infer", "report", "export")  # each reads what those before it wrote
SIZE = 64
TIMES = {"train_s", "epoch_s", "images_per_second", "rank_images_per_second", "device_wait_share"}
TRAIN = (
    "--folds 2 --protocols pooled --only-folds 0 --epochs 1 --save-steps 1 --loader.batch-size 2 --workers-per-run 1 "
    "--model.encoder tu-test_efficientnet --model.weights none"
)


def words(job: Job, root: str, archive: str, *more: str) -> list[str]:
    """Return the command of a job that reads and writes below the folder `root`."""
    options: dict[Job, str] = {
        "prepare": f"archive --source {archive} --out {root}/data --preprocess.size {SIZE} --images-per-shard 2",
        "train": f"demo --data {root}/data --out {root}/runs --study one {TRAIN}",
        "infer": f"archive --archive {archive} --checkpoint {root}/runs/one --out {root}/predictions --part-size 2 "
        "--batch-size 2 --workers 1",
        "report": f"study --study {root}/runs/one --predictions {root}/predictions --out {root}/report --overlays 2",
        "export": f"archive --predictions {root}/predictions --out {root}/export --formats masks overlays coco",
    }
    return [str(Path("jobs") / f"{job}.py"), *options[job].split(), *more]


def run(job: Job, root: Path, *more: str) -> None:
    """Run a job in this process, on the Ray that this process has joined. The images are in `root/archive`."""
    _, *args = words(job, str(root), str(root / "archive"), *more)
    importlib.import_module(f"lungseg.pipelines.{job}").run(parse(job, args))


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which a job uses two CPUs, independent of the machine, and `home` as its home."""
    ray = {"RAY_ADDRESS": "local", "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    return {**os.environ, **ray, "WANDB_MODE": "disabled", "HOME": str(home), **more}


def start(command: list[str], values: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a job in its own session. Its output goes to a file: a pipe that nobody reads would block it."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            env=dict(values),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def error_line(output: str) -> str:
    """Return the one line in which a job reports its error. There must be no traceback."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if "error: " in line or "settings: " in line]
    assert len(lines) == 1, output
    return lines[0]


def without_folders(value: Any, root: str, archive: str) -> Any:
    """Replace the names of both folders in all strings of a result."""
    if isinstance(value, str):
        return value.replace(archive, "ARCHIVE").replace(root, "ROOT")
    if isinstance(value, Mapping):
        return {
            without_folders(key, root, archive): without_folders(item, root, archive) for key, item in value.items()
        }
    return [without_folders(item, root, archive) for item in value] if isinstance(value, list | tuple) else value


def prepared(root: str) -> dict[str, Any]:
    """Return the bytes of all tars and the rows of each index, by path."""
    results: dict[str, Any] = {}
    for folder in storage.list_folders(f"{root}/data"):
        for path in storage.list_files(folder, (".tar",)):
            results[path.removeprefix(root)] = storage.read_bytes(path)
        results[folder.removeprefix(root)] = storage.read_table(f"{folder}/index.parquet").to_pylist()
    assert sum(name.endswith(".tar") for name in results) > 1
    return results


def trained(root: str) -> dict[str, Any]:
    """Return digests of weights, metrics and tested images of each run."""
    study = storage.read_json(f"{root}/runs/one/study.json")
    results: dict[str, Any] = {"results": study["results"], "states": study["states"]}
    for name in study["runs"]:
        folder = f"{root}/runs/one/{name}"
        lines = [json.loads(line) for line in storage.read_bytes(f"{folder}/metrics.jsonl").splitlines()]
        summary = storage.read_json(f"{folder}/run.json")
        del summary["settings"]
        results[name] = [
            checkpoint.find_all(folder)[0].config["digests"]["model.safetensors"],
            [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
            storage.read_table(f"{folder}/tested.parquet").to_pylist(),
            summary,
        ]
    return results


def predicted(root: str, archive: str) -> Any:
    """Return the rows of all parts, with masks and metrics."""
    paths = storage.list_files(f"{root}/predictions", (".parquet",))
    rows = [row for path in paths for row in storage.read_table(path).to_pylist()]
    assert rows
    assert all(row["mask"] for row in rows)
    return without_folders(steady(rows), root, archive)


def reported(root: str, archive: str) -> Any:
    """Return the numbers of a report, without the record of how its models were trained."""
    report = without_folders(storage.read_json(f"{root}/report/report.json"), root, archive)
    report["study"].pop("training")
    return report
