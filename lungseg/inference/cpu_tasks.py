"""CPU tasks of an inference: open the images of a part, and finish their masks. Uses neither Ray nor torch.

Between the stages, each image is a row of a table. `opened`: OpenedImage as JSON. `square`: u8[S,S] as bytes, null
where there is nothing to predict. After prediction, `probability`: u16[K,S,S] as bytes, from `to_levels`.
"""

import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from lungseg import storage
from lungseg.config import InferSettings, PreprocessSettings
from lungseg.errors import InputError, LungsegError, TaskResult
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, from_levels, open_item
from lungseg.inference.part_plan import unpack_items, write_part
from lungseg.inference.rows import make_row, shared_values
from lungseg.ingest.crash_isolation import (
    ISOLATE_AFTER,
    MAX_CRASHES,
    map_isolated,
    mark_started,
    reject_crashed,
    too_many_crashes,
)
from lungseg.predictions.parts import part_path
from lungseg.schema import Record

MARKERS = "started"  # folder below the predictions
_READERS = 4  # threads of a task that read from a bucket: they mostly wait, and decoding releases the GIL


@dataclass(frozen=True)
class InferenceJob:
    """Settings and models of an inference, for all stages.

    out: folder of the parts. checkpoints: their folders. thresholds: of each class. key: for pseudonyms of
    patient ids.
    """

    settings: InferSettings
    out: str
    checkpoints: tuple[str, ...]
    model_name: str
    model_digest: str
    preprocess: PreprocessSettings
    thresholds: dict[str, float]
    options: PredictOptions
    key: bytes | None = None

    def marker_path(self, number: int) -> str:
        """Return the path of the file that exists while a part is being opened, and after a crash."""
        return storage.join(self.out, MARKERS, f"part-{number:06d}.json")

    @property
    def fault_folder(self) -> str:
        """Folder of the files in which actors record that their GPU failed."""
        return storage.join(self.out, MARKERS, "faults")


def open_part(rows: pa.Table, job: InferenceJob) -> pa.Table:
    """Read, decode and preprocess the images of one part.

    rows: one row with `number`, `items`, `digest`. Returns one row per image. If workers crashed on this part before,
    each image is opened in a separate process.
    """
    cv2.setNumThreads(1)  # Ray runs one task per core
    (part,) = rows.to_pylist()
    items = unpack_items(part["items"])
    marker = job.marker_path(part["number"])
    try:
        crashes = mark_started(marker)
        try:
            if crashes > MAX_CRASHES:
                raise InputError(too_many_crashes(part_path(job.out, part["number"]), crashes))
            opened = list(_open_isolated(items, job) if crashes >= ISOLATE_AFTER else _open_all(items, job))
        finally:
            storage.delete(marker)
    except LungsegError as error:
        return _table(part, [OpenedImage(Record("", "", "", status="failed"))], TaskResult(error=error))
    return _table(part, opened, TaskResult())


def finish_part(rows: pa.Table, job: InferenceJob) -> pa.Table:
    """Compute the masks of one part at native size, measure them, and write the part.

    Returns one row: `number`, and `result`: a TaskResult with `images`, `counts`, `times` and `batch_size`.
    """
    cv2.setNumThreads(1)
    images = rows.to_pylist()
    result = TaskResult.from_json(images[0]["result"])
    if result.error is None:
        result = TaskResult.of(_write_masks, images, job)
    return pa.Table.from_pylist([{"number": images[0]["number"], "result": result.to_json()}])


def _write_masks(images: Sequence[dict[str, Any]], job: InferenceJob) -> dict[str, Any]:
    began = time.perf_counter()
    part = images[0]
    shared = shared_values(job.thresholds, job.model_name, job.model_digest)
    pairs = [(parse_opened(row), _parse_prediction(row, len(job.thresholds))) for row in images]
    rows = [make_row(*pair, shared, job.settings.postprocess, job.thresholds) for pair in pairs]
    counts = write_part(part_path(job.out, part["number"]), rows, part["digest"])
    times = {
        "open": math.fsum(opened.seconds for opened, _ in pairs),
        "predict": math.fsum(prediction.seconds for _, prediction in pairs if prediction is not None),
        "finish": time.perf_counter() - began,
        "busy": json.loads(part["busy"]),
    }
    measured = {"times": json.dumps(times), "batch_size": part["batch_size"]}
    return {"images": len(rows), "counts": counts.to_json(), **measured}


def _open_all(items: Sequence[Item], job: InferenceJob) -> Iterator[OpenedImage]:
    with ThreadPoolExecutor(_READERS if any("://" in uri for item in items for uri in item.files()) else 1) as pool:
        yield from pool.map(functools.partial(open_item, preprocess=job.preprocess, key=job.key), items)


def _open_isolated(items: Sequence[Item], job: InferenceJob) -> Iterator[OpenedImage]:
    open_one = functools.partial(open_item, preprocess=job.preprocess, key=job.key)
    for item, opened in zip(items, map_isolated(open_one, items), strict=True):
        yield opened or OpenedImage(reject_crashed(item.record))


def _table(part: dict[str, Any], opened: Sequence[OpenedImage], result: TaskResult) -> pa.Table:
    squares = [None if image.square is None else image.square.tobytes() for image in opened]
    same = {name: [part[name]] * len(opened) for name in ("number", "digest")}
    return pa.table(
        {
            **same,
            "result": pa.array([result.to_json()] * len(opened), pa.string()),
            "opened": pa.array([image.to_json() for image in opened], pa.string()),
            "square": pa.array(squares, pa.large_binary()),
        }
    )


def parse_opened(row: dict[str, Any]) -> OpenedImage:
    """Restore an image from a row of `open_part`, with its square if the row has one."""
    opened = OpenedImage.from_json(row["opened"])
    content = row.get("square")
    if content is None or opened.geometry is None:
        return opened
    size = opened.geometry.size
    return replace(opened, square=np.frombuffer(content, np.uint8).reshape(size, size))


def _parse_prediction(row: dict[str, Any], classes: int) -> Prediction | None:
    if row["predicted"] is None:
        return None
    levels = np.frombuffer(row["probability"], np.uint16)
    side = math.isqrt(levels.size // classes)
    return Prediction(from_levels(levels.reshape(classes, side, side)), **json.loads(row["predicted"]))
