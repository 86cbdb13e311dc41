"""Predictions checked: every part whole, every image once, every figure recomputed from the masks that are stored."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.data import datasets, images, shards
from lungseg.engine.items import Item, open_item, prepared_item
from lungseg.engine.segment import compare
from lungseg.errors import InputError
from lungseg.model import postprocess, shape
from lungseg.pipelines.parts import read_parts
from lungseg.pipelines.progress import ProgressLine
from lungseg.schema import USABLE, Record

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-6  # relative; distances are of 24 bits, and the last ones depend on how many threads OpenCV runs
_TOLD = 20
Row = dict[str, Any]


def run(out: str) -> None:
    """Recompute every figure in a folder of predictions and name what differs; nothing is changed.

    Raises:
        InputError: the folder holds no whole predictions, or something in it differs.

    """
    if not storage.exists(out):
        raise InputError(f"{out}: no such folder: pass the --out of jobs/infer.py")
    if not storage.exists(storage.join(out, "predictions.json")):
        raise InputError(f"{out}: no predictions.json in it, expected what a finished jobs/infer.py wrote: finish it")
    ended, plan = (storage.read_json(storage.join(out, name)) for name in ("predictions.json", "plan.json"))
    wrong, ids, done = _check_parts(out, ended), Counter[tuple[str, str, str]](), 0
    preprocess = PreprocessSettings.model_validate(plan["preprocess"])
    line, samples = ProgressLine(logger), _Samples()
    for path, table in read_parts(out):
        for row in table.to_pylist():
            if row["status"] in USABLE:  # a listing may name an image twice: the second row is rejected
                ids[row["dataset"], row["image_id"], row["source_uri"]] += 1
            wrong += [f"{path}, {row['image_id']}: {said}" for said in _check_row(row, preprocess, samples)]
            done += 1
            line.show(f"recomputed {done} of {ended['images']} rows")
    wrong += [f"{name} has {count} rows, expected one" for (_, name, _), count in ids.items() if count > 1]
    if done != ended["images"]:
        wrong.append(f"{done} rows, predictions.json says {ended['images']}")
    _tell(wrong, out)
    logger.info("%s: %d rows, every figure as it comes from the stored masks", out, done)


def _tell(wrong: Sequence[str], out: str) -> None:
    for said in wrong[:_TOLD]:
        logger.error("%s", said)
    if wrong:
        raise InputError(f"{out}: {len(wrong)} things are wrong, the first of them above; nothing was changed")


class _Samples:
    """Finds the index rows of prepared data, each data set's index read once."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row]] = {}

    def item(self, row: Row) -> Item:
        """Make an item of a row of predictions.

        Raises:
            InputError: its sample is not there any more.

        """
        tar, mark, image_id = row["source_uri"].rpartition("#")
        if not (mark and tar.endswith(".tar")):
            masks = tuple(row["mask_uris"] or ())
            return Item(Record(row["image_id"], row["dataset"], row["source_uri"], masks, ("lung",) * len(masks)))
        folder = storage.parent_of(tar)
        if folder not in self._rows:
            index = datasets.open_dataset(folder).index.to_pylist()
            self._rows[folder] = {one["image_id"]: one for one in index}
        if image_id not in self._rows[folder]:
            raise InputError(f"{row['source_uri']} has gone")
        return prepared_item(folder, self._rows[folder][image_id])


def _check_parts(out: str, ended: Row) -> list[str]:
    wrong = []
    for part in ended["parts"]:
        try:
            content = storage.read_bytes(storage.join(out, part["name"]))
        except InputError as error:
            wrong.append(str(error))
            continue
        if shards.digest_bytes(content) != part["sha256"]:
            wrong.append(f"{part['name']} is not the file that predictions.json tells of")
    return wrong


def _check_row(row: Row, preprocess: PreprocessSettings, samples: _Samples) -> list[str]:
    if row["status"] not in USABLE:
        return [] if row["mask"] is None else ["it has a mask, though it was not predicted"]
    if row["mask"] is None:
        return ["it has no mask, though it was predicted"]
    try:
        mask = images.decode_rle(row["mask"], row["height"], row["width"])
    except ValueError as error:
        return [f"its mask cannot be decoded ({error})"]
    expected: Row = {**shape.describe(mask), "components": postprocess.components(mask)}
    reference = None
    if row["dice"] is not None or row["mask_uris"]:
        try:
            opened = open_item(samples.item(row), preprocess)
        except InputError as error:
            return [str(error)]
        if opened.reference is not None:
            reference = images.decode_rle(opened.reference, row["height"], row["width"])
        elif row["dice"] is not None:
            return [f"its reference mask cannot be read any more ({opened.record.reason})"]
    expected |= compare(mask, reference)
    return [
        f"{name} is {row[name]}, its mask gives {value}"
        for name, value in expected.items()
        if not _same(row[name], value)
    ]


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=_TOLERANCE)
    return bool(np.array_equal(found, expected)) if isinstance(expected, list) else bool(found == expected)
