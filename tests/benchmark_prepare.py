"""Speed and memory of preparation, compared with a plain loop over the same calls: `python tests/benchmark_prepare.py`.

Draws phantoms of 1024 x 1024 px (kept in --work for later runs), prepares 500 and then all of them with
jobs/prepare.py in a new process, and measures its peak memory. Every 15 s all processes of the job are stopped for 4 s,
in which one plain loop per core reads, decodes, normalises, resizes and encodes the same phantoms, so that both run
under the same load of the machine. `seconds` are those in which Ray prepares the images; `other_seconds` are those
before, for the start, and after, for the search for duplicates. Prints one JSON object. Not a test, because the results
depend on the machine.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
from turns import BareLoops, Turns, answer

from lungseg.config import PreprocessSettings
from lungseg.imaging import codecs, phantom
from lungseg.imaging.geometry import prepare_image, prepare_mask

ROOT = Path(__file__).resolve().parents[1]
SIZE, FEW = 1024, 500
SETTINGS = PreprocessSettings(histogram="equalize")


def draw(folder: Path, count: int) -> None:
    """Draw `count` pairs into folder/images and folder/masks; existing pairs are not changed."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / "masks" / f"{number:05d}.png").exists()]
    with ProcessPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(draw_one, [folder] * len(missing), missing, chunksize=16), start=1):
            if done % 200 == 0:
                print(f"drew {done} of {len(missing)}", file=sys.stderr)


def draw_one(folder: Path, number: int) -> None:
    """Draw one pair, alternately in each style."""
    cv2.setNumThreads(1)
    image, mask = phantom.draw(number, phantom.STYLES[number % len(phantom.STYLES)], SIZE)
    (folder / "images" / f"{number:05d}.png").write_bytes(codecs.encode_image(image))
    (folder / "masks" / f"{number:05d}.png").write_bytes(codecs.encode_mask(mask))


def warm(folder: Path) -> None:
    """Read every file once, so that the disk does not affect the results."""
    for path in folder.glob("*/*.png"):
        path.read_bytes()


def bare_loop(folder: str) -> None:
    """Run the necessary calls for one image after another, on request of BareLoops."""
    cv2.setNumThreads(1)
    names = sorted(path.name for path in Path(folder, "images").iterdir())
    random.shuffle(names)  # each process starts with other images

    def work() -> Iterator[int]:
        for name in itertools.cycle(names):
            image = codecs.decode(Path(folder, "images", name).read_bytes(), name)
            mask = codecs.decode_mask(Path(folder, "masks", name).read_bytes(), name)
            square, geometry = prepare_image(image, SETTINGS)
            codecs.encode_image(square)
            codecs.encode_mask(prepare_mask(mask, geometry))
            yield 1

    answer(work())


def prepare(folder: Path, bare: BareLoops) -> dict[str, Any]:
    """Run the job on a folder, alternating with plain loops; return its rate and the peak memory of its driver."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), "archive"]
        options = ["--dataset", "phantoms", "--preprocess.histogram", SETTINGS.histogram]
        warm(folder)
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--source", str(folder), "--out", out, *options], stdout=subprocess.DEVNULL, env=environment
        )
        turns, peak = Turns(process.pid, bare), 0
        while process.poll() is None:
            peak = max(peak, peak_kib(process.pid))
            if any(Path(out).glob("*/*.tar")) and not any(Path(out).glob("*/dataset.json")):
                turns.take()
            time.sleep(0.25)  # polling slows the job down
        whole = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(process.returncode)
        summary = json.loads((Path(out) / "summary.json").read_text())
    seconds = summary["seconds"] - turns.paused
    return {
        "images": summary["inputs"],
        "images_per_second": round(summary["inputs"] / seconds, 2),
        "seconds": round(seconds, 2),
        "other_seconds": round(whole - summary["seconds"], 2),
        "driver_peak_mib": round(peak / 1024, 1),
        "worker_share": summary["worker_share"],
    }


def peak_kib(process: int) -> int:
    """Return the peak resident memory in KiB; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lungseg-benchmark")
    parser.add_argument("--images", type=int, default=4000)
    arguments = parser.parse_args()
    many, few = arguments.work / f"phantoms-{arguments.images}", arguments.work / f"phantoms-{FEW}"
    draw(many, arguments.images)
    draw(few, FEW)
    cores = len(os.sched_getaffinity(0))
    bare = BareLoops(f"from benchmark_prepare import bare_loop; bare_loop({str(many)!r})", cores)
    lean, full = prepare(few, bare), prepare(many, bare)
    bare.close()
    # The difference of the two runs excludes the time to start and to finish.
    steady = (full["images"] - lean["images"]) / (full["seconds"] - lean["seconds"])
    result = {
        "cores": cores,
        "bare_images_per_second": round(bare.rate(), 1),
        "bare_each": [round(rate, 1) for rate in bare.rates],
        "few": lean,
        "many": full,
        "rate_of_bare": round(full["images_per_second"] / bare.rate(), 3),
        "steady_rate_of_bare": round(steady / bare.rate(), 3),
        "memory_of_few": round(full["driver_peak_mib"] / lean["driver_peak_mib"], 3),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
