"""How fast and how lean inference is, against the bare model: `python tests/benchmark_infer.py --checkpoint RUN`.

Draws phantoms of several sizes (kept in --work for the next time), one of them 6000 x 6000 px at 16 bits and one of
30 x 30, then measures in one go: the bare model on ready tensors with one thread, before and after; jobs/infer.py on
500 images and on all of them with one model of one thread, while one more core opens and finishes; how long it takes
to the first batch, beside what Ray alone takes; the peak memory of the driver and of every worker. A worker's is
compared with what it was after 500 images of the same run: where the C library lays tensors differs from start to
start by a fifth. Prints one JSON object. Not a test: what it measures depends on the machine.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from lungseg.data import images, phantom
from lungseg.data.preprocess import prepare_image
from lungseg.engine import checkpoint
from lungseg.engine.buffers import keep_buffers
from lungseg.engine.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
SIDES, FEW, BATCH, PART = (384, 512, 640, 768, 1024), 500, 16, 64
HUGE, TINY, DRAWN = 6000, 30, 200
# One CPU for Ray: one model of one thread, and room for one task, which the machine's other core takes.
JOB = """
import sys, time, ray
from lungseg import logs
from lungseg.config import InferSettings
from lungseg.pipelines import infer
logs.configure()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print(time.time(), flush=True)
infer.run(InferSettings(archive=sys.argv[1], checkpoint=(sys.argv[2],), out=sys.argv[3]))
"""
# The same stages with nothing in them: what Ray and Ray Data take until a first batch lies before an actor.
RAY_ALONE = """
import time, ray, ray.data
class Model:
    def __call__(self, rows):
        return {"at": [time.time()] * len(rows["item"])}
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
context = ray.data.DataContext.get_current()
context.enable_progress_bars = False
done = ray.data.from_items([{"item": number} for number in range(8)], override_num_blocks=8)
done = done.map_batches(lambda rows: rows, num_cpus=0.25)
done = done.map_batches(Model, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.49)
print(min(row["at"] for row in done.map_batches(lambda rows: rows, num_cpus=0.25).iter_rows()))
"""


def draw(folder: Path, count: int) -> None:
    """Draw `count` pictures into a folder; those that are there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:05d}.png").exists()]
    with ProcessPoolExecutor() as pool:
        for part in ([n for n in missing if n < DRAWN], [n for n in missing if n >= DRAWN]):
            for done, _ in enumerate(pool.map(draw_one, [folder] * len(part), part, chunksize=16), start=1):
                if done % 200 == 0:
                    print(f"drew {done} of {len(part)}", file=sys.stderr)


def draw_one(folder: Path, number: int) -> None:
    """Draw one picture, alternately in each style; the first is huge, the second tiny.

    Drawing takes longer than all that is measured here, so the later ones are earlier ones at another size, darkened.
    """
    cv2.setNumThreads(1)
    side = SIDES[(number + number // DRAWN) % len(SIDES)]
    if number < DRAWN:
        image, _ = phantom.draw(number, phantom.STYLES[number % len(phantom.STYLES)], side)
    else:
        earlier = images.decode((folder / f"{2 + number % (DRAWN - 2):05d}.png").read_bytes(), "phantom")
        darker = earlier * (0.5 + 0.4 * np.random.default_rng(number).random())
        image = cv2.resize(darker.astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    if number == 0:
        image = cv2.resize(image.astype(np.uint16) * np.uint16(257), (HUGE, HUGE), interpolation=cv2.INTER_CUBIC)
    if number == 1:
        image = cv2.resize(image, (TINY, TINY), interpolation=cv2.INTER_AREA)
    (folder / f"{number:05d}.png").write_bytes(images.encode_image(image))


def bare_rate(folder: Path, run: str) -> float:
    """Images/s of the model alone on ready squares, one thread, in a process of its own."""
    code = f"from tests.benchmark_infer import bare_loop; bare_loop({str(folder)!r}, {run!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def bare_loop(folder: str, run: str, seconds: float = 20.0) -> None:
    """Predict the same batch for so long, and print images/s."""
    keep_buffers()
    torch.set_num_threads(1)
    found = checkpoint.find(run)
    predictor = Predictor(found)
    paths = sorted(Path(folder).iterdir())[2 : 2 + BATCH]
    squares = [prepare_image(images.decode(path.read_bytes(), path.name), found.preprocess)[0] for path in paths]
    predictor.probabilities(squares)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        predictor.probabilities(squares)
        done += len(squares)
    print(done / (time.perf_counter() - began))


def infer(folder: Path, run: str) -> dict[str, Any]:
    """Run the job on a folder and watch its processes."""
    for path in folder.iterdir():
        path.read_bytes()  # so that nobody's figure is that of the disk
    with tempfile.TemporaryDirectory() as out:
        began, started = time.perf_counter(), time.time()
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(folder), run, out], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        peaks: dict[str, int] = {}
        early: dict[str, int] = {}
        while process.poll() is None:
            watch(process.pid, peaks)
            if not early and len(list(Path(out).glob("part-*.parquet"))) * PART >= FEW:
                early = dict(peaks)
            time.sleep(0.2)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(process.returncode)
        found = json.loads((Path(out) / "predictions.json").read_text())
        called = float(process.stdout.read().split()[-1])
    return {
        "images": found["images"],
        "counts": found["counts"],
        "seconds": found["seconds"],
        "command_s": round(seconds, 1),
        "first_batch_s": round(called + found["stages"]["start_s"] - started, 2),
        "stages": found["stages"],
        "peak_mib": {name: round(peak / 2**20) for name, peak in sorted(peaks.items())},
        f"peak_mib_after_{FEW}": {name: round(peak / 2**20) for name, peak in sorted(early.items())},
    }


def watch(process: int, peaks: dict[str, int]) -> None:
    """Note the largest resident memory so far of the driver and of each kind of worker, bytes."""
    try:
        driver = psutil.Process(process)
        family = [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            title = one.cmdline()[:1] or [""]
            # What an actor is at just now stands behind its name.
            name = "driver" if one.pid == process else re.sub(r"\.\w+$", "", title[0])
            if name == "driver" or name.startswith("ray::"):
                own = one.memory_info()
                peaks[name] = max(peaks.get(name, 0), own.rss - own.shared)
        except psutil.Error:
            continue


def ray_alone() -> float:
    """Seconds from the start of a process to a first batch of nothing."""
    began, environment = time.time(), {**os.environ, "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", RAY_ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1]) - began


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args()
    many, few = arguments.work / f"infer-{arguments.images}", arguments.work / f"infer-{FEW}"
    draw(many, arguments.images)
    draw(few, FEW)
    alone = [ray_alone() for _ in range(2)]
    before = bare_rate(many, arguments.checkpoint)
    lean, full = infer(few, arguments.checkpoint), infer(many, arguments.checkpoint)
    after = bare_rate(many, arguments.checkpoint)
    bare = (before + after) / 2
    steady = (full["images"] - lean["images"]) / (full["seconds"] - lean["seconds"])
    result = {
        "bare_images_per_s": round(bare, 2),
        "bare_before_and_after": [round(before, 2), round(after, 2)],
        "few": lean,
        "many": full,
        "rate_of_bare": round(full["images"] / full["seconds"] / bare, 3),
        "steady_rate_of_bare": round(steady / bare, 3),
        "ray_alone_s": [round(seconds, 2) for seconds in alone],
        "first_batch_s": [lean["first_batch_s"], full["first_batch_s"]],
        "driver_memory_of_few": round(full["peak_mib"]["driver"] / lean["peak_mib"]["driver"], 3),
        f"memory_after_all_of_after_{FEW}": {
            name: round(full["peak_mib"][name] / peak, 3) for name, peak in full[f"peak_mib_after_{FEW}"].items()
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
