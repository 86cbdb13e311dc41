"""Speed of the backends on this CPU: `python tests/benchmark_backends.py --archive FOLDER [--checkpoint MODEL ...]`.

Table: images/s of each installed backend on prepared tensors, by model and size, with one thread per CPU; the backends
take turns, several times, and the fastest turn of each counts. `cpu` is the processor time for an image, which other
work on the machine changes less. Of a model that is no ONNX file also: parameters, multiplications and additions of an
image (GMACs, of convolutions and products of matrices), and the size of its ONNX file.

With --images N, it also runs `lungseg infer` on N images (those of --archive, repeated): the first model with torch and
with the other backends, and models that are files, such as an int8 one, in the backends that run them. Each job runs
until its first part is written; then one at a time runs for 4 s while the others are stopped, so that all meet the same
load. Their seconds count only while they run: `start_s` until the first part is written, `rate` from then to the end.
On standard error: how many times faster than the first one each is.
Prints one JSON object. Not a test, because the results depend on the machine.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import relatives, send

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.inference.backends import RUNTIMES, Network, available_threads, is_installed, open_network
from lungseg.inference.ensemble import Predictor
from lungseg.inference.inputs import list_items
from lungseg.inference.items import PredictOptions, open_item
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.checkpoint_io import load_model
from lungseg.model.cpu_memory import keep_freed_memory
from lungseg.model.graph_file import can_run, is_graph
from lungseg.model.onnx_cache import find_or_export

BATCH, TURNS, TURN_S = 4, 5, 4.0
PARTS = 8  # of a job, at least


def main() -> None:
    options = parse()
    keep_freed_memory()  # as the actors of infer do; torch takes half the time then
    models = [model for name in options.checkpoint for model in checkpoint.find_all(sources.resolve(name))]
    result: dict[str, Any] = {"threads": available_threads(), "batch": BATCH, "rates": []}
    for model, size in itertools.product(models, options.sizes):
        if not size or not is_graph(model.folder):
            result["rates"].append(rates(resized(model, size), options.archive))
            print(json.dumps(result["rates"][-1]), file=sys.stderr)
    if options.images:
        result["jobs"] = jobs(options)
    print(json.dumps(result, indent=1))


def resized(model: Checkpoint, size: int) -> Checkpoint:
    """Return a model that takes squares of another size; 0: its own."""
    preprocess = model.config["preprocess"] | ({"size": size} if size else {})
    return Checkpoint(model.folder, model.config | {"preprocess": preprocess})


def rates(model: Checkpoint, archive: str) -> dict[str, Any]:
    """Measure the backends in turns on the same images."""
    items = itertools.islice(list_items(InferSettings(archive=archive), model.preprocess), 2 * BATCH)
    squares = [square for item in items if (square := open_item(item, model.preprocess).square) is not None]
    images = np.stack(squares[:BATCH])[:, None]
    networks = opened(model)
    probabilities = {name: network(images) for name, network in networks.items()}  # and warm up
    expected = next(iter(probabilities.values()))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for name, network in [*networks.items()] * TURNS:
        began, cpu = time.perf_counter(), time.process_time()
        network(images)
        times[name].append((time.perf_counter() - began, time.process_time() - cpu))
    row: dict[str, Any] = {"model": sources.model_name([model]), "size": model.preprocess.size}
    if not is_graph(model.folder):
        row |= costs(model)
    for name, measured in times.items():
        row[name] = {
            "images_per_second": round(len(images) / min(wall for wall, _ in measured), 2),
            "cpu_s": round(min(cpu for _, cpu in measured) / len(images), 4),
            "max_difference": float(np.abs(probabilities[name] - expected).max()),
        }
    return row


def costs(model: Checkpoint) -> dict[str, float]:
    """Return what a network costs on any machine."""
    network, side = load_model(model).eval(), model.preprocess.size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, side, side))
    return {
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "gmacs": round(counter.get_total_flops() / 2e9, 2),
        "onnx_mb": round(Path(find_or_export(model).path).stat().st_size / 1e6, 1),
    }


def opened(model: Checkpoint) -> dict[str, Network]:
    """Load a model in each backend that can run it."""
    torch.set_num_threads(available_threads())
    runtimes = [name for name in RUNTIMES if is_installed(name) and can_run(model.folder, name)]
    path = find_or_export(model).path
    networks: dict[str, Network] = {} if is_graph(model.folder) else {"torch": Predictor(model, PredictOptions())}
    return networks | {name: open_network(path, name) for name in runtimes}


def job_kinds(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield model and backend of each job: the first model with torch and the others, then models that are files."""
    for name in names:
        folder = checkpoint.find_all(sources.resolve(name))[0].folder
        runtimes = [runtime for runtime in RUNTIMES if is_installed(runtime) and can_run(folder, runtime)]
        if is_graph(folder):
            yield from ((name, runtime) for runtime in runtimes)
        elif name == names[0]:
            yield from ((name, backend) for backend in ("torch", *runtimes))


@dataclass
class Job:
    """A job that runs only in its turns. seconds: in which it ran. started: of them, until the first part."""

    process: subprocess.Popen[bytes]
    out: Path
    seconds: float = 0.0
    started: float = 0.0
    first: int = 0

    def run(self) -> None:
        """Run until the first part is written, else for a turn, or until the end."""
        for process in relatives(self.process.pid):
            send(process, signal.SIGCONT)
        began = time.perf_counter()
        is_starting = not self.first  # it is not stopped then: Ray must start within 30 s by the clock
        while self.process.poll() is None and (is_starting or time.perf_counter() - began < TURN_S):
            time.sleep(0.05)
            if is_starting and (parts := list(self.out.glob("rows/part-*.parquet"))):
                self.first, self.started = len(parts), self.seconds + time.perf_counter() - began
                break
        self.seconds += time.perf_counter() - began
        for process in relatives(self.process.pid):
            send(process, signal.SIGSTOP)


def jobs(options: argparse.Namespace) -> dict[str, Any]:
    """Run `lungseg infer` with each model and backend, in turns."""
    part_size = max(1, min(64, options.images // PARTS))  # or the first part would be the last one
    with tempfile.TemporaryDirectory() as folder:
        archive = repeated(options.archive, Path(folder) / "images", options.images)
        words = ["--archive", archive, "--part-size", part_size]
        running = {
            f"{name} {backend}": start([*words, "--checkpoint", name], Path(folder) / str(number), backend)
            for number, (name, backend) in enumerate(job_kinds(list(dict.fromkeys(options.checkpoint))))
        }
        while any(job.process.poll() is None for job in running.values()):
            for job in running.values():
                if job.process.poll() is None:
                    job.run()
        results = {name: described(job, options.images) for name, job in running.items()}
    first = next(iter(results.values()))
    for name, result in results.items():
        print(
            f"{name}: {result['rate']} images/s, the first job x {result['rate'] / first['rate']:.2f}", file=sys.stderr
        )
    return results


def start(words: Sequence[object], out: Path, backend: str) -> Job:
    """Start a job, and stop it at once."""
    command = ["lungseg", "infer", "archive", *words, "--out", out, "--backend", backend]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    with open(out.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *map(str, command)], env=environment, stdout=log, stderr=log)
    process.send_signal(signal.SIGSTOP)
    return Job(process, out)


def repeated(archive: str, folder: Path, count: int) -> Path:
    """Link images into a folder until it has `count`."""
    paths = [path for path in storage.list_files(archive) if path.lower().endswith((".png", ".jpg", ".dcm"))]
    folder.mkdir()
    for number in range(count):
        source = Path(paths[number % len(paths)])
        (folder / f"{number:06d}{source.suffix}").symlink_to(source)
    return folder


def described(job: Job, images: int) -> dict[str, float]:
    """Return the rates of a finished job."""
    if job.process.returncode:
        raise SystemExit(job.out.with_suffix(".log").read_text())
    summary = storage.read_json(str(job.out / "predictions.json"))
    rest = max(0, images - job.first * summary["settings"]["part_size"])
    return {
        "seconds": round(job.seconds, 1),
        "start_s": round(job.started, 1),
        "images_per_second": round(images / job.seconds, 2),
        "rate": round(rest / max(job.seconds - job.started, 1e-9), 2),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", required=True, help="X-rays")
    parser.add_argument(
        "--checkpoint", nargs="+", default=["lungs"], help="models; --images runs jobs of the first one and of files"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[0], help="sides of the square, px; 0: the model's")
    parser.add_argument("--images", type=int, default=0, help="number of images for the whole job, such as 2000")
    return parser.parse_args()


if __name__ == "__main__":
    main()
