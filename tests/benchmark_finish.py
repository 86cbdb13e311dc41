"""CPU time to finish an image, compared with another checkout: `python tests/benchmark_finish.py --before CHECKOUT`.

Makes a row of each mask of --data (cxr256) enlarged to 2048 px and of phantoms at 3072 px: restore, post-process,
measure, encode. The probabilities are the blurred masks with noise, so no model is needed. Two processes, one for each
checkout, take turns at each image; the least time of each counts. Prints one JSON object with the means in ms and the
images whose rows are equal in all common columns except `doubt_reason`, which has new wording. Not a test, because the
results depend on the machine.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from turns import pipe

from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.imaging import phantom
from lungseg.imaging.geometry import plan_geometry
from lungseg.inference.items import OpenedImage, Prediction, from_levels, to_levels
from lungseg.inference.rows import make_row
from lungseg.schema import Record

ROOT = Path(__file__).resolve().parents[1]
SIZE, SIDES = 512, (2048, 3072)
HAS_CLASSES = (
    importlib.util.find_spec("lungseg.inference.class_masks") is not None
)  # False before models had several classes


def masks(data: Path, images: int) -> Iterator[tuple[Any, int]]:
    """Yield masks and the longer side to finish them at."""
    paths = sorted(data.glob("*/masks/*"))
    for path in paths[:: max(1, len(paths) // images)]:
        yield (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127).astype(np.uint8), SIDES[0]
    for number in range(max(1, images // 5)):
        yield phantom.draw(number, phantom.STYLES[number % len(phantom.STYLES)], SIZE)[1], SIDES[1]


def finished(mask: Any, side: int, number: int) -> dict[str, Any]:
    """Make the row of a mask as if it were predicted, with the CPU time that this takes."""
    height, width = (round(length * side / max(mask.shape)) for length in mask.shape)
    geometry = plan_geometry(height, width, PreprocessSettings(size=SIZE))
    square, random = np.zeros((SIZE, SIZE), np.float32), np.random.default_rng(number)
    size = geometry.resized_width, geometry.resized_height
    square[geometry.content()] = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    noise = cv2.GaussianBlur(random.standard_normal((SIZE, SIZE)), (0, 0), float(random.choice([1.5, 4, 9])))
    noise *= float(random.choice([0, 0.1, 0.25])) / noise.std()
    probability = np.clip(0.02 + 0.95 * cv2.GaussianBlur(square, (0, 0), 2) + noise, 0, 1).astype(np.float32)
    restored = from_levels(to_levels(probability))
    prediction = Prediction(restored[None] if HAS_CLASSES else restored, 1, False)
    opened = OpenedImage(Record("a", "b", "c", height=height, width=width), None, geometry)
    began = time.process_time()
    row = make_row(opened, prediction, {"threshold": 0.5, "model": "none"}, PostprocessSettings())
    return {"ms": 1000 * (time.process_time() - began), "row": {**row, "seconds": 0}}


def answer(data: Path, images: int) -> None:
    """For each line of standard input, the number of an image, print its row and time."""
    cv2.setNumThreads(1)
    inputs = list(masks(data, images))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(finished(*inputs[int(line)], int(line))) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / ".." / "shared" / "data" / "cxr256")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--answer", action="store_true", help="be one of the two processes")
    arguments = parser.parse_args()
    if arguments.answer:
        answer(arguments.data, arguments.images)
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--answer"]
    workers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{checkout.resolve()}"},
        )
        for checkout in (arguments.before, ROOT)
    ]
    times: dict[int, list[list[float]]] = {side: [] for side in SIDES}
    equal = 0
    for number, (_, side) in enumerate(masks(arguments.data, arguments.images)):
        least, rows = [float("inf")] * 2, [{}, {}]
        for turn in range(arguments.turns):
            for index in (0, 1) if turn % 2 else (1, 0):
                print(number, file=pipe(workers[index].stdin), flush=True)
                result = json.loads(pipe(workers[index].stdout).readline())
                least[index], rows[index] = min(least[index], result["ms"]), result["row"]
        times[side].append(least)
        equal += all(rows[0][name] == rows[1][name] for name in rows[0].keys() & rows[1].keys() - {"doubt_reason"})
    for worker in workers:
        pipe(worker.stdin).close()
    means = {
        side: [round(sum(column) / len(column), 1) for column in zip(*pairs, strict=True)]
        for side, pairs in times.items()
    }
    images = sum(map(len, times.values()))
    print(json.dumps({"ms_before_and_after": means, "images": images, "equal_rows": equal}, indent=1))


if __name__ == "__main__":
    main()
