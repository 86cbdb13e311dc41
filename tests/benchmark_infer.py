"""Speed and memory of inference, compared with the model alone: `python tests/benchmark_infer.py --checkpoint RUN`.

Draws phantoms of several sizes (kept in --work for later runs), one of them 6000 x 6000 px at 16 bits and one 30 x 30
px. Then it measures:
- the time to the first batch of 128 images, alternating with the same time for Ray alone;
- the rate of jobs/infer.py on 500 and on all images, with one model of one thread; another core opens and finishes
  images. Every 15 s all its processes are stopped for 4 s, in which the model alone processes prepared tensors in one
  thread, so that both run under the same load of the machine;
- the peak memory of the driver and of each worker for all images, relative to that for 500 images and to that after
  the first 500 of the same run (memory layout differs between starts).
Prints one JSON object. Not a test, because the results depend on the machine.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from turns import BareLoops, Turns, answer, pipe, relatives

from lungseg.imaging import codecs, phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.ensemble import Predictor
from lungseg.model import checkpoint
from lungseg.model.cpu_memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
SIDES, FEW, BATCH, PART = (384, 512, 640, 768, 1024), 500, 16, 64
HUGE, TINY, DRAWN = 6000, 30, 200
STARTS, STARTED = 5, 128  # number of timed starts, and of their images
# One CPU for Ray: one model of one thread and one task, which runs on another core.
JOB = """
import sys, time, ray
from lungseg import logs
from lungseg.config import InferSettings
from lungseg.pipelines import cluster, infer
logs.configure()
start = ray.init
ray.init = lambda **options: start(**{**options, "num_cpus": 1})
cluster.connect()
print(time.time(), flush=True)
infer.run(InferSettings(archive=sys.argv[1], checkpoint=(sys.argv[2],), out=sys.argv[3]))
"""
# The same stages without work: the time that Ray and Ray Data need until an actor gets its first batch.
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
    """Draw `count` images into a folder; existing images are not changed."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:05d}.png").exists()]
    with ProcessPoolExecutor() as pool:
        for part in ([n for n in missing if n < DRAWN], [n for n in missing if n >= DRAWN]):
            for done, _ in enumerate(pool.map(draw_one, [folder] * len(part), part, chunksize=16), start=1):
                if done % 200 == 0:
                    print(f"drew {done} of {len(part)}", file=sys.stderr)


def draw_one(folder: Path, number: int) -> None:
    """Draw one image, alternately in each style; the first is huge, the second tiny.

    Drawing is slower than inference, so later images are earlier ones that are darkened and resized.
    """
    cv2.setNumThreads(1)
    side = SIDES[(number + number // DRAWN) % len(SIDES)]
    if number < DRAWN:
        image, _ = phantom.draw(number, phantom.STYLES[number % len(phantom.STYLES)], side)
    else:
        earlier = codecs.decode((folder / f"{2 + number % (DRAWN - 2):05d}.png").read_bytes(), "phantom")
        darker = earlier * (0.5 + 0.4 * np.random.default_rng(number).random())
        image = cv2.resize(darker.astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    if number == 0:
        image = cv2.resize(image.astype(np.uint16) * np.uint16(257), (HUGE, HUGE), interpolation=cv2.INTER_CUBIC)
    if number == 1:
        image = cv2.resize(image, (TINY, TINY), interpolation=cv2.INTER_AREA)
    (folder / f"{number:05d}.png").write_bytes(codecs.encode_image(image))


def bare_loop(folder: str, run: str) -> None:
    """Predict the same prepared batch repeatedly in one thread, on request of BareLoops."""
    keep_freed_memory()
    torch.set_num_threads(1)
    verified = checkpoint.find_all(run)[0]
    predictor = Predictor(verified)
    paths = sorted(Path(folder).iterdir())[2 : 2 + BATCH]
    squares = [prepare_image(codecs.decode(path.read_bytes(), path.name), verified.preprocess)[0] for path in paths]

    def work() -> Iterator[int]:
        while True:
            predictor.probabilities(squares)
            yield len(squares)

    answer(work())


def infer(folder: Path, run: str, bare: BareLoops | None = None) -> dict[str, Any]:
    """Run the job on a folder and measure its processes; with `bare`, pause them while the model alone runs."""
    for path in folder.iterdir():
        path.read_bytes()  # so that the disk does not affect the results
    with tempfile.TemporaryDirectory() as out:
        began, started = time.perf_counter(), time.time()
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(folder), run, out], stdout=subprocess.PIPE, text=True, env=environment
        )
        turns = Turns(process.pid, bare) if bare else None
        peaks: dict[str, int] = {}
        early: dict[str, int] = {}
        while process.poll() is None:
            watch(process.pid, peaks)
            done = len(list(Path(out).glob("rows/part-*.parquet"))) * PART
            if not early and done >= FEW:
                early = dict(peaks)
            if turns and done:
                turns.take()
            time.sleep(0.2)
        paused = turns.paused if turns else 0.0
        seconds = time.perf_counter() - began - paused
        if process.returncode:
            raise SystemExit(process.returncode)
        summary = json.loads((Path(out) / "predictions.json").read_text())
        called = float(pipe(process.stdout).read().split()[-1])
    return {
        "images": summary["images"],
        "counts": summary["counts"],
        "seconds": round(summary["seconds"] - paused, 2),
        "command_s": round(seconds, 1),
        "first_batch_s": round(called + summary["stages"]["start_s"] - started, 2),
        "stages": summary["stages"],
        "peak_mib": {name: round(peak / 2**20) for name, peak in sorted(peaks.items())},
        f"peak_mib_after_{FEW}": {name: round(peak / 2**20) for name, peak in sorted(early.items())},
    }


def watch(process: int, peaks: dict[str, int]) -> None:
    """Update the peak resident memory of the driver and of each kind of worker, in bytes."""
    for relative in relatives(process):
        try:
            title = relative.cmdline()[:1] or [""]
            # The title of an actor ends with the name of the running method.
            name = "driver" if relative.pid == process else re.sub(r"\.\w+$", "", title[0])
            if name == "driver" or name.startswith("ray::"):
                own = relative.memory_info()
                peaks[name] = max(peaks.get(name, 0), own.rss - own.shared)
        except psutil.Error:
            continue


def ray_alone() -> float:
    """Return the seconds from the start of a process to the first batch, without any work."""
    began, environment = time.time(), {**os.environ, "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", RAY_ALONE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1]) - began


def starts(folder: Path, run: str) -> dict[str, Any]:
    """Measure the time to the first batch, alternating between Ray alone and the job."""
    pairs = [(ray_alone(), float(infer(folder, run)["first_batch_s"])) for _ in range(STARTS)]
    return {
        "ray_alone_s": [round(alone, 2) for alone, _ in pairs],
        "first_batch_s": [first for _, first in pairs],
        "more_than_ray_s": [round(first - alone, 2) for alone, first in pairs],
        "median_more_than_ray_s": round(statistics.median(first - alone for alone, first in pairs), 2),
    }


def over(peaks: dict[str, int], earlier: dict[str, int]) -> dict[str, float]:
    """Return the ratio of peaks for the processes in both."""
    return {name: round(peaks[name] / peak, 3) for name, peak in earlier.items() if name in peaks}


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args()
    many, few = arguments.work / f"infer-{arguments.images}", arguments.work / f"infer-{FEW}"
    begun = arguments.work / f"infer-{STARTED}"
    draw(many, arguments.images)
    draw(few, FEW)
    draw(begun, STARTED)
    start = starts(begun, arguments.checkpoint)
    code = f"from benchmark_infer import bare_loop; bare_loop({str(many)!r}, {arguments.checkpoint!r})"
    bare = BareLoops(code, count=1)
    lean, full = infer(few, arguments.checkpoint), infer(many, arguments.checkpoint, bare)
    bare.close()
    result = {
        **start,
        "bare_images_per_second": round(bare.rate(), 2),
        "bare_each": [round(rate, 1) for rate in bare.rates],
        "few": lean,
        "many": full,
        "rate_of_bare": round(full["images"] / full["seconds"] / bare.rate(), 3),
        "memory_of_few": over(full["peak_mib"], lean["peak_mib"]),
        f"memory_after_all_of_after_{FEW}": over(full["peak_mib"], full[f"peak_mib_after_{FEW}"]),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
