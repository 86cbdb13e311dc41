"""The jobs as a user's commands on small work, and what they leave behind in a form that two places can share."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungseg import storage
from lungseg.model import checkpoint
from tests.shared_fixtures import steady

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
TIMES = {"train_s", "epoch_s", "images_per_s", "wait_share"}
TRAIN = (
    "--folds 2 --protocols pooled --only-folds 0 --epochs 1 --save-steps 1 --loader.batch 2 --workers-per-run 1 "
    "--model.encoder tu-test_efficientnet --model.weights none"
)


def words(job: str, place: str, archive: str, *more: str) -> list[str]:
    """Say the command of a job that reads and writes below one place."""
    own = {
        "prepare": f"archive --source {archive} --out {place}/data --preprocess.size {SIZE} --images-per-shard 2",
        "train": f"demo --data {place}/data --out {place}/runs --study one {TRAIN}",
        "infer": f"archive --archive {archive} --checkpoint {place}/runs/one --out {place}/predictions --part 2 "
        "--batch 2 --workers 1",
        "report": f"study --study {place}/runs/one --predictions {place}/predictions --out {place}/report --overlays 2",
        "export": f"archive --predictions {place}/predictions --out {place}/export --formats masks overlays coco",
    }
    return [str(Path("jobs") / f"{job}.py"), *own[job].split(), *more]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Give a job two CPUs, whatever the machine has, and a home of its own."""
    ray = {"RAY_ADDRESS": "local", "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    return {**os.environ, **ray, "WANDB_MODE": "disabled", "HOME": str(home), **more}


def start(command: list[str], values: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a job in a session of its own; what it says goes to a file, where nobody has to read for it to go on."""
    with log.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            env=dict(values),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def complaint(said: str) -> str:
    """Give the one line in which a job says why it ended; there is no traceback."""
    assert "Traceback" not in said, said
    lines = [line for line in said.splitlines() if "error: " in line or "settings: " in line]
    assert len(lines) == 1, said
    return lines[0]


def anywhere(value: Any, place: str, archive: str) -> Any:
    """Take out of what was read where it lies."""
    if isinstance(value, str):
        return value.replace(archive, "ARCHIVE").replace(place, "PLACE")
    if isinstance(value, Mapping):
        return {anywhere(key, place, archive): anywhere(one, place, archive) for key, one in value.items()}
    return [anywhere(one, place, archive) for one in value] if isinstance(value, list | tuple) else value


def prepared(place: str) -> dict[str, Any]:
    """Digests of all tars, and the index."""
    found: dict[str, Any] = {}
    for folder in storage.list_folders(f"{place}/data"):
        for path in storage.list_files(folder, (".tar",)):
            found[path.removeprefix(place)] = storage.read_bytes(path)
        found[folder.removeprefix(place)] = storage.read_table(f"{folder}/index.parquet").to_pylist()
    assert sum(name.endswith(".tar") for name in found) > 1
    return found


def trained(place: str) -> dict[str, Any]:
    """Weights, lines of figures and tested images of each run."""
    study = storage.read_json(f"{place}/runs/one/study.json")
    found: dict[str, Any] = {"results": study["results"], "states": study["states"]}
    for name in study["runs"]:
        folder = f"{place}/runs/one/{name}"
        lines = [storage.json.loads(line) for line in storage.read_bytes(f"{folder}/metrics.jsonl").splitlines()]
        summary = storage.read_json(f"{folder}/run.json")
        del summary["settings"]
        found[name] = [
            checkpoint.find_all(folder)[0].config["digests"]["model.safetensors"],
            [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
            storage.read_table(f"{folder}/tested.parquet").to_pylist(),
            summary,
        ]
    return found


def predicted(place: str, archive: str) -> Any:
    """Rows of all parts, with masks and figures."""
    paths = storage.list_files(f"{place}/predictions", (".parquet",))
    rows = [row for path in paths for row in storage.read_table(path).to_pylist()]
    assert rows
    assert all(row["mask"] for row in rows)
    return anywhere(steady(rows), place, archive)


def reported(place: str, archive: str) -> Any:
    """What a report says, in figures."""
    return anywhere(storage.read_json(f"{place}/report/report.json"), place, archive)
