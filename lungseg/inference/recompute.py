"""Verify predictions: every part is complete, every image has one row, and all values match the stored masks."""

import functools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import PreprocessSettings
from lungseg.config.class_names import LUNG, ONE_CLASS, lung_parts
from lungseg.dataset import catalog
from lungseg.errors import InputError
from lungseg.imaging.coco_rle import decode_runs, encode_runs
from lungseg.imaging.geometry import read_geometry
from lungseg.imaging.orientation import UPRIGHT, to_upright
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import mask_flags, mask_shape, postprocess
from lungseg.inference.class_checks import check_classes, check_names, class_masks, expected_classes
from lungseg.inference.class_masks import derive
from lungseg.inference.comparison import compare
from lungseg.inference.items import Item, open_item, prepared_item
from lungseg.inference.rows import Thresholds, shared_values, stored_thresholds
from lungseg.ingest.reason_codes import RESULT_FLAGS
from lungseg.plurals import counted
from lungseg.predictions.parts import PartFields, StatusCounts, part_files, read_part, rows_folder
from lungseg.progress import ProgressLine
from lungseg.schema import USABLE, Geometry, Record
from lungseg.storage import files
from lungseg.storage.json_files import Finite, JsonFields, Whole, parse_json

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-6  # relative; distances are stored as f32 and vary in the last bits with the threads of OpenCV
_MAX_LOGGED = 20


class _SummaryFields(JsonFields):
    images: Whole
    parts: list[PartFields]


class _PlanFields(JsonFields):
    model: str
    model_name: str
    threshold: Finite | None = None
    thresholds: dict[str, Finite] = Field(default_factory=dict)
    preprocess: dict[str, Any]


def run(out: str) -> None:
    """Recompute all values in a folder of predictions from the stored masks; changes nothing.

    Raises:
        InputError: the folder has no finished predictions, or a value differs.

    """
    summary, plan = _read_summary_and_plan(out)
    row_count = summary["images"]
    thresholds = stored_thresholds(plan)
    shared = shared_values(thresholds, plan["model_name"], plan["model"])
    problems = _check_digests(out, summary)
    preprocess = PreprocessSettings.stored(plan["preprocess"], storage.join(out, "plan.json"))
    ids, counts = Counter[tuple[str, str, str]](), StatusCounts.empty()
    progress, samples = ProgressLine(logger), Samples()
    for path in part_files(out):
        try:
            table = read_part(path)
        except InputError as error:
            problems.append(str(error))
            continue
        counts = counts.add(StatusCounts.from_rows(table))
        for row in table.to_pylist():
            if row["status"] in USABLE:  # a listing may name an image twice: the second row is rejected
                ids[row["dataset"], row["image_id"], row["source_uri"]] += 1
            differences = check_row(row, shared, preprocess, samples, thresholds)
            problems += [f"{path}, {row['image_id']}: {difference}" for difference in differences]
        progress.update(f"verified {counts.statuses.total()} of {counted(row_count, 'row')}")
    problems += [
        f"{name} has {counted(count, 'row')}, expected one" for (_, name, _), count in ids.items() if count > 1
    ]
    problems += _check_counts(counts, summary)
    _report(problems, out)
    rows = counted(counts.statuses.total(), "row")
    logger.info("%s: verified %s: all values match the stored masks", out, rows)


def _read_summary_and_plan(out: str) -> tuple[Row, Row]:
    if not storage.exists(out):
        raise InputError(f"{out}: no such folder: pass the --out of lungseg infer")
    if not storage.exists(storage.join(out, "predictions.json")):
        raise InputError(f"{out} has no predictions.json: run the same lungseg infer command again to finish it")
    summary = storage.read_json(storage.join(out, "predictions.json"), fields=_SummaryFields)
    return summary, storage.read_json(storage.join(out, "plan.json"), fields=_PlanFields)


def _check_counts(counts: StatusCounts, summary: Row) -> list[str]:
    """Compare the counts of all rows with predictions.json."""
    actual = {
        "images": counts.statuses.total(),
        "counts": counts.counts(),
        "codes": counts.code_counts(),
        "flagged": counts.flagged,
        "flags": dict(counts.flags),
    }
    if actual["images"] != summary["images"]:
        return [f"{actual['images']} rows, but predictions.json has {summary['images']}"]
    return [
        f"{name} in predictions.json is {summary.get(name)}, but the rows give {value}"
        for name, value in actual.items()
        if summary.get(name) != value
    ]


def _report(problems: Sequence[str], out: str) -> None:
    for problem in problems[:_MAX_LOGGED]:
        logger.error("%s", problem)
    if problems:
        raise InputError(
            f"{out}: {counted(len(problems), 'problem')} found, the first are listed above; no file was changed"
        )


class Samples:
    """Index rows of prepared data; reads the index of each dataset once."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row]] = {}
        self._classes: dict[str, tuple[str, ...]] = {}

    def item(self, row: Row) -> Item:
        """Return the item that a row was predicted from.

        Raises:
            InputError: its sample no longer exists.

        """
        tar, separator, image_id = row["source_uri"].rpartition("#")
        if not (separator and tar.endswith(".tar")):
            masks, values = tuple(row["mask_uris"] or ()), tuple(row["mask_values"] or ())
            ids = (row["image_id"], row["dataset"], row["source_uri"])
            classes = tuple(row["mask_classes"] or ()) or ONE_CLASS * len(masks)
            return Item(Record(*ids, masks, classes, mask_values=values))
        folder = storage.parent_of(tar)
        if folder not in self._rows:
            data = catalog.open_dataset(folder)
            self._rows[folder] = {sample["image_id"]: sample for sample in data.index.to_pylist()}
            self._classes[folder] = data.preprocess.classes
        if image_id not in self._rows[folder]:
            raise InputError(f"{row['source_uri']} no longer exists")
        return prepared_item(folder, self._rows[folder][image_id], classes=self._classes[folder])


def _check_digests(out: str, summary: Row) -> list[str]:
    problems = []
    for part in summary["parts"]:
        try:
            content = storage.read_bytes(storage.join(rows_folder(out), part["name"]))
        except InputError as error:
            problems.append(str(error))
            continue
        if files.digest_bytes(content) != part["sha256"]:
            problems.append(f"{part['name']} does not match its digest in predictions.json")
    return problems


def check_row(
    row: Row, shared: Row, preprocess: PreprocessSettings, samples: Samples, thresholds: Thresholds | None = None
) -> list[str]:
    """List the problems of a row. shared: values that all rows have according to the plan.

    thresholds: of each class; None for the one class lung.
    """
    thresholds = {} if thresholds is None or tuple(thresholds) == ONE_CLASS else thresholds
    problems = _check_consistency(row, shared, tuple(thresholds))
    if problems or not _is_predicted(row):
        return problems
    try:
        geometry = _geometry(row)
        masks = {name: _as_upright(one, geometry.orientation) for name, one in class_masks(row).items()}
        references = _references(row, geometry, preprocess, samples)
        derived = derive(masks)
        expected = {**derived.columns, "flags": [*derived.flags]}
        if row["mask"] is not None:
            lungs = _expected_of_lungs(row, geometry, masks, references.get(LUNG))
            expected = {**expected, **lungs, "flags": [*derived.flags, *lungs["flags"]]}
    except InputError as error:
        return [str(error)]
    actual = {**row, "flags": [flag for flag in row["flags"] or () if flag in RESULT_FLAGS]}
    differences = [
        f"{name} is {actual[name]}, but the mask gives {value}"
        for name, value in expected.items()
        if not _is_equal(actual[name], value)
    ]
    return differences + check_classes(row, expected_classes(masks, references, thresholds), _is_equal)


def _expected_of_lungs(row: Row, geometry: Geometry, masks: dict[str, Runs], reference: Runs | None) -> Row:
    """Return the values that follow from the mask of the lungs. masks: upright, of each class of several."""
    stored = decode_runs(row["mask"], row["height"], row["width"])
    mask = _as_upright(stored, geometry.orientation)
    parts = [masks[name] for name in lung_parts(tuple(masks))]
    lungs = functools.reduce(Runs.union, parts, mask if not parts else parts[0])
    sides = (parts[0], parts[1]) if len(parts) > 1 else None
    areas = sides and (sides[0].area, sides[1].area)
    return {
        "mask": encode_runs(mask_shape.as_stored(lungs, geometry.orientation)),
        **mask_shape.describe(mask, stored, row["spacing_mm"], areas),
        "components": postprocess.count_components(mask),
        "flags": mask_flags.find_flags(mask, row["mean_probability"], sides),
        **compare(mask, reference),
    }


def _is_predicted(row: Row) -> bool:
    """Return whether a row has a mask; without lungs among the classes, only the classes have one."""
    return row["mask"] is not None or bool(row["classes"])


def _check_consistency(row: Row, shared: Row, classes: Sequence[str]) -> list[str]:
    """List values of a row that contradict its other values or the plan. classes: none for the one class lung."""
    problems = [
        f"{name} is {row[name]}, but the plan has {value}"
        for name, value in shared.items()
        if not _is_equal(row[name], value)
    ]
    if _is_predicted(row) != (row["status"] in USABLE):
        return [*problems, f"status is {row['status']}, but the row has {'a' if _is_predicted(row) else 'no'} mask"]
    if not _is_predicted(row):
        return problems
    problems += check_names(row, classes)
    if (row["mask"] is None) == (not classes or bool(lung_parts(classes))):
        problems.append(f"mask is {'null' if row['mask'] is None else 'set'}, which the classes of the model rule out")
    try:
        geometry = _geometry(row)
    except InputError as error:
        return [*problems, f"geometry cannot be read ({error})"]
    if (row["height"], row["width"]) != geometry.stored_shape():
        problems.append(f"size is {row['height']}x{row['width']}, but the geometry has another: {row['geometry']}")
    for name in ("mean_probability", "border_entropy", "doubt"):
        if row[name] is not None and not 0.0 <= row[name] <= 1.0 + _TOLERANCE:
            problems.append(f"{name} is {row[name]}, expected 0 to 1")
    return problems


def _as_upright(stored: Runs, orientation: int) -> Runs:
    return stored if orientation == UPRIGHT else Runs.from_mask(to_upright(stored.to_mask(), orientation))


def _geometry(row: Row) -> Geometry:
    return read_geometry(parse_json((row["geometry"] or "").encode(), "the geometry"))


def _references(row: Row, geometry: Geometry, preprocess: PreprocessSettings, samples: Samples) -> dict[str, Runs]:
    """Read the upright reference masks of a row by class.

    Raises:
        InputError: the row was compared with a mask that can no longer be read.

    """
    compared = {one["class"] for one in row["classes"] or () if one["dice"] is not None}
    compared |= {*ONE_CLASS} if row["dice"] is not None else set()
    if not compared and not row["mask_uris"]:
        return {}
    opened = open_item(samples.item(row), preprocess)
    if compared - opened.references.keys():
        raise InputError(f"the reference mask can no longer be read ({opened.record.message})")
    shape = geometry.native_height, geometry.native_width
    return {name: decode_runs(counts, *shape) for name, counts in opened.references.items()}


def _is_equal(actual: Any, expected: Any) -> bool:
    if isinstance(actual, float) and isinstance(expected, float):
        return math.isclose(actual, expected, rel_tol=_TOLERANCE)
    return bool(np.array_equal(actual, expected)) if isinstance(expected, list) else bool(actual == expected)
