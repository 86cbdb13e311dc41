"""Predictions checked: every part whole, every image once, every figure recomputed from the masks that are stored."""

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, first_line
from lungseg.imaging import codecs
from lungseg.inference import mask_shape, postprocess
from lungseg.inference.items import Item, open_item, prepared_item
from lungseg.inference.rows import compare
from lungseg.predictions.parts import StatusCounts, part_files, read_part
from lungseg.progress import ProgressLine
from lungseg.schema import USABLE, Geometry, Record
from lungseg.storage import files

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
    try:
        images_told, same = int(ended["images"]), {"model": plan["model"], "threshold": float(plan["threshold"])}
        wrong, preprocess = _check_parts(out, ended), PreprocessSettings.model_validate(plan["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{out}: predictions.json or plan.json is not as jobs/infer.py writes it ({first_line(error)})"
        ) from None
    ids, total = Counter[tuple[str, str, str]](), StatusCounts.empty()
    line, samples = ProgressLine(logger), _Samples()
    for path in part_files(out):
        try:
            table = read_part(path)
        except InputError as error:
            wrong.append(str(error))
            continue
        total = total.add(StatusCounts.from_rows(table))
        for row in table.to_pylist():
            if row["status"] in USABLE:  # a listing may name an image twice: the second row is rejected
                ids[row["dataset"], row["image_id"], row["source_uri"]] += 1
            wrong += [f"{path}, {row['image_id']}: {said}" for said in _check_row(row, same, preprocess, samples)]
        line.update(f"recomputed {total.statuses.total()} of {images_told} rows")
    wrong += [f"{name} has {count} rows, expected one" for (_, name, _), count in ids.items() if count > 1]
    wrong += _check_account(total, ended)
    _tell(wrong, out)
    logger.info("%s: %d rows, every figure as it comes from the stored masks", out, total.statuses.total())


def _check_account(total: StatusCounts, ended: Row) -> list[str]:
    """Compare what the rows add up to with what predictions.json tells of them."""
    found = {"images": total.statuses.total(), "counts": total.counts(), "codes": total.code_counts()}
    if found["images"] != ended["images"]:
        return [f"{found['images']} rows, predictions.json says {ended['images']}"]
    return [
        f"{name} in predictions.json is {ended.get(name)}, the rows give {value}"
        for name, value in found.items()
        if ended.get(name) != value
    ]


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
            index = catalog.open_dataset(folder).index.to_pylist()
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
        if files.digest_bytes(content) != part["sha256"]:
            wrong.append(f"{part['name']} is not the file that predictions.json tells of")
    return wrong


def _check_row(row: Row, same: Row, preprocess: PreprocessSettings, samples: _Samples) -> list[str]:
    """Say what is wrong with a row; same: what all rows have in common by the plan."""
    wrong = _check_alone(row, same)
    if wrong or row["mask"] is None:
        return wrong
    try:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        reference = _reference(row, preprocess, samples)
    except (InputError, ValueError, TypeError) as error:
        return [str(error)]
    expected = {
        **mask_shape.describe(mask),
        "components": postprocess.count_components(mask),
        **compare(mask, reference),
    }
    return [
        f"{name} is {row[name]}, its mask gives {value}"
        for name, value in expected.items()
        if not _same(row[name], value)
    ]


def _check_alone(row: Row, same: Row) -> list[str]:
    """Say what in a row does not fit the rest of it, or the plan."""
    wrong = [f"{name} is {row[name]}, the plan says {value}" for name, value in same.items() if row[name] != value]
    if (row["mask"] is None) == (row["status"] in USABLE):
        has = "no mask, though it was predicted" if row["mask"] is None else "a mask, though it was not predicted"
        return [*wrong, f"it has {has}"]
    if row["mask"] is None:
        return wrong
    try:
        geometry = Geometry(**json.loads(row["geometry"]))
    except (ValueError, TypeError) as error:
        return [*wrong, f"its geometry cannot be read ({error})"]
    if (row["height"], row["width"]) != (geometry.native_height, geometry.native_width):
        wrong.append(f"it is {row['height']}x{row['width']}, its geometry says otherwise: {row['geometry']}")
    for name in ("mean_probability", "border_entropy"):
        if row[name] is not None and not 0.0 <= row[name] <= 1.0 + _TOLERANCE:
            wrong.append(f"{name} is {row[name]}, expected 0 to 1")
    return wrong


def _reference(row: Row, preprocess: PreprocessSettings, samples: _Samples) -> NDArray[np.uint8] | None:
    """Read the reference mask that a row was compared with.

    Raises:
        InputError: it cannot be read any more.

    """
    if row["dice"] is None and not row["mask_uris"]:
        return None
    opened = open_item(samples.item(row), preprocess)
    if opened.reference is not None:
        return codecs.decode_rle(opened.reference, row["height"], row["width"])
    if row["dice"] is not None:
        raise InputError(f"its reference mask cannot be read any more ({opened.record.message})")
    return None


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=_TOLERANCE)
    return bool(np.array_equal(found, expected)) if isinstance(expected, list) else bool(found == expected)
