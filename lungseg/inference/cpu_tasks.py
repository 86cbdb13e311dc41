"""What CPU tasks do in an inference, each a function of a part's table: open and finish; without Ray or torch.

Opened and predicted images travel as rows: `opened`, JSON; `square`, u8[S,S] as bytes, null where there is nothing to
predict; after prediction `probability`, u16[S,S] as bytes, 65535 for 1 (a half of that precision changes no mask by
more than the odd pixel, and half the bytes go from one machine to the next).
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
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, open_item
from lungseg.inference.part_plan import write_part
from lungseg.inference.rows import make_row
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

PROBABILITY_SCALE = np.float32(65535.0)
_READERS = 4  # threads of a task that open images: in a bucket reading is waiting, and decoding leaves the lock


@dataclass(frozen=True)
class InferenceJob:
    """What every stage knows.

    out: where the parts go. models: the checkpoints' folders; model: their digest. key: for pseudonyms.
    """

    settings: InferSettings
    out: str
    checkpoints: tuple[str, ...]
    model_digest: str
    preprocess: PreprocessSettings
    threshold: float
    options: PredictOptions
    key: bytes | None = None

    def marker_path(self, number: int) -> str:
        """Name the file that says that a part is being opened."""
        return storage.join(self.out, "begun", f"part-{number:06d}.json")


def open_part(rows: pa.Table, job: InferenceJob) -> pa.Table:
    """Read, decode and prepare the images of one part: a row of `number`, `items`, `digest` to a row an image.

    A part over which workers died is opened image by image, each in a process of its own.
    """
    cv2.setNumThreads(1)  # Ray runs one task a core
    (part,) = rows.to_pylist()
    items = [Item.from_dict(item) for item in json.loads(part["items"])]
    note = job.marker_path(part["number"])
    try:
        deaths = mark_started(note)
        try:
            opened = list(_open(items, job, deaths))
        finally:
            storage.delete(note)
    except LungsegError as error:
        return _table(part, [OpenedImage(Record("", "", "", status="failed"))], TaskResult(error=error))
    return _table(part, opened, TaskResult())


def finish_part(rows: pa.Table, job: InferenceJob) -> pa.Table:
    """Restore, post-process, compare and encode the masks of one part and write its file.

    Returns one row: `number` and `result`, a TaskResult of `images`, `account` and `times`.
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
    made = {"threshold": job.threshold, "model": job.model_digest}
    pairs = [(opened_row(row), _predicted(row)) for row in images]
    rows = [make_row(opened, predicted, made, job.settings.postprocess) for opened, predicted in pairs]
    account = write_part(part_path(job.out, part["number"]), rows, part["digest"])
    times = {
        "open": math.fsum(opened.seconds for opened, _ in pairs),
        "predict": math.fsum(predicted.seconds for _, predicted in pairs if predicted is not None),
        "finish": time.perf_counter() - began,
        "busy": json.loads(part["busy"]),
    }
    return {"images": len(rows), "account": account.to_json(), "times": json.dumps(times)}


def _open(items: Sequence[Item], job: InferenceJob, deaths: int) -> Iterator[OpenedImage]:
    if deaths > MAX_CRASHES:
        raise InputError(too_many_crashes(f"{job.out}: one part", deaths))
    yield from _open_apart(items, job) if deaths >= ISOLATE_AFTER else _open_all(items, job)


def _open_all(items: Sequence[Item], job: InferenceJob) -> Iterator[OpenedImage]:
    with ThreadPoolExecutor(_READERS if any("://" in uri for item in items for uri in item.files()) else 1) as pool:
        yield from pool.map(functools.partial(open_item, preprocess=job.preprocess, key=job.key), items)


def _open_apart(items: Sequence[Item], job: InferenceJob) -> Iterator[OpenedImage]:
    work = functools.partial(open_item, preprocess=job.preprocess, key=job.key)
    for item, opened in zip(items, map_isolated(work, items), strict=True):
        yield opened or OpenedImage(reject_crashed(item.record))


def _table(part: dict[str, Any], opened: Sequence[OpenedImage], result: TaskResult) -> pa.Table:
    squares = [None if one.square is None else one.square.tobytes() for one in opened]
    same = {name: [part[name]] * len(opened) for name in ("number", "digest")}
    return pa.table(
        {
            **same,
            "result": pa.array([result.to_json()] * len(opened), pa.string()),
            "opened": pa.array([one.to_json() for one in opened], pa.string()),
            "square": pa.array(squares, pa.large_binary()),
        }
    )


def opened_row(row: dict[str, Any]) -> OpenedImage:
    """Read what `open_part` wrote of an image, with its square where the row still has it."""
    opened = OpenedImage.from_json(row["opened"])
    content = row.get("square")
    if content is None or opened.geometry is None:
        return opened
    size = opened.geometry.size
    return replace(opened, square=np.frombuffer(content, np.uint8).reshape(size, size))


def _predicted(row: dict[str, Any]) -> Prediction | None:
    if row["predicted"] is None:
        return None
    levels = np.frombuffer(row["probability"], np.uint16)
    side = math.isqrt(levels.size)
    return Prediction(levels.reshape(side, side).astype(np.float32) / PROBABILITY_SCALE, **json.loads(row["predicted"]))
