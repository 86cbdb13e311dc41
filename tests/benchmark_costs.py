"""CPU time per image and stage: `python tests/benchmark_costs.py`. Prints one JSON object.

Mean CPU seconds of one thread: open a radiograph of 1955 x 1841 px (pydicom's RG1, uncompressed and JPEG 2000; read,
decode, check, prepare at 512 px), finish an image of that size without a reference mask (restore, post-process,
measure, encode), and the loader's work at 512 px. Not a test, because the results depend on the machine.
"""

import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from pydicom.data import get_testdata_file

from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.config.recipes import TRAIN
from lungseg.imaging import codecs, phantom
from lungseg.inference.items import Item, Prediction, open_item
from lungseg.inference.rows import make_row
from lungseg.schema import Record
from lungseg.training.augment import augment

SIZE = 512
KEY = b"for a benchmark, and for nothing else"


def cost(work: Callable[[], object], times: int) -> float:
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return round((time.process_time() - began) / times, 4)


def main() -> None:
    cv2.setNumThreads(1)
    preprocess = PreprocessSettings(size=SIZE)
    costs: dict[str, float] = {}
    for name, coding in (("RG1_UNCR", "uncompressed"), ("RG1_J2KR", "JPEG 2000")):
        item = Item(Record("RG1", "films", str(Path(str(get_testdata_file(f"{name}.dcm"))))))
        opened = open_item(item, preprocess, KEY)
        assert opened.record.usable, opened.record.message
        costs[f"open a DICOM, {coding}"] = cost(lambda item=item: open_item(item, preprocess, KEY), 5)  # type: ignore[misc]
    image, mask = phantom.draw(3, "montgomery", SIZE)
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3.0).astype(np.float32)
    predicted = Prediction(blurred, 1, False)
    model = {"threshold": 0.5, "model": "none"}
    costs["finish it"] = cost(lambda: make_row(opened, predicted, model, PostprocessSettings()), 5)
    numbers, settings = count(), TRAIN["small"][1].augment  # type: ignore[attr-defined]
    costs["augment"] = cost(lambda: augment(image, mask, settings, (0, next(numbers), "x")), 100)
    content = codecs.encode_image(image)
    costs["decode a prepared image"] = cost(lambda: codecs.decode(content, "x"), 100)
    print(json.dumps({"unit": "CPU seconds an image", **costs}, indent=1))


if __name__ == "__main__":
    main()
