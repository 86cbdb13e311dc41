"""Select the predictions to export: verified parts, and the rows that satisfy a query."""

import heapq
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.arrays import Row
from lungseg.arrow import pa
from lungseg.config import ExportSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError, SettingsError, first_line
from lungseg.ingest.file_names import normal_form
from lungseg.plurals import counted
from lungseg.predictions.class_columns import add_class_columns
from lungseg.predictions.class_masks import class_names
from lungseg.predictions.parts import part_files, read_part, recorded_digests
from lungseg.predictions.ranking import doubt_key, highest_usual_doubt
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import USABLE
from lungseg.storage.files import digest_bytes
from lungseg.storage.json_files import JsonFields

_NAMES = ("image_id", "dataset", "patient_id", "source_uri")  # compared in one Unicode form
_MASKS = ("mask", "classes")  # columns with masks
_READERS = 8  # threads that read parts: reading from a bucket is mostly waiting


class _PlanFields(JsonFields):
    archive: str


def require_outside_archive(folder: str, out: str) -> None:
    """Refuse to write into the archive, where the next job would read the exported files as images.

    Raises:
        InputError: --out is the archive's folder or a folder in it.

    """
    archive = storage.read_json(storage.join(folder, "plan.json"), fields=_PlanFields)["archive"]
    if storage.is_inside(out, archive):
        raise InputError(f"--out {out} is inside the archive {archive}: pass a folder outside of it")


def reserve_output(out: str, folder: str, settings: ExportSettings) -> None:
    """Record in export.json what is exported, so that one folder never mixes two exports.

    Raises:
        InputError: the folder has an export of other predictions or of other rows, or files of another origin.

    """
    path = storage.join(out, "export.json")
    parts = storage.digest(sorted(recorded_digests(folder).items()))
    export = {
        "predictions": folder,
        "parts": parts,
        "where": settings.where,
        "worst": settings.worst,
        "include_doubtful": settings.include_doubtful,
    }
    if storage.exists(path):
        recorded = storage.read_json(path)
        changed = [name for name, value in export.items() if recorded.get(name) != value]
        if changed:
            raise InputError(
                f"{out} has another export ({', '.join(changed)} changed): pass another --out, or delete the folder"
            )
        return
    occupied = [kind for kind in settings.formats if kind != "coco" and storage.list_folders(storage.join(out, kind))]
    if occupied:
        raise InputError(f"{out}/{occupied[0]} has files, but {out} has no export.json: pass another --out")
    storage.write_json(path, export)


def verified_parts(folder: str) -> list[str]:
    """List the parts of a finished inference after checking their SHA-256.

    Raises:
        InputError: a part is missing, was changed, or is not listed in predictions.json.

    """
    expected = recorded_digests(folder)
    paths = part_files(folder)
    names = [storage.name_of(path) for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        digests = dict(zip(names, pool.map(lambda path: digest_bytes(storage.read_bytes(path)), paths), strict=True))
    wrong = sorted(name for name in expected.keys() | digests.keys() if digests.get(name) != expected.get(name))
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} of {counted(len(expected), 'part')} are missing or differ from predictions.json "
            "(first: "
            f"{wrong[0]}): run the same lungseg infer command again"
        )
    return paths


def predicted_classes(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of the model that made the predictions in these parts; ONE_CLASS where no row has a mask."""
    for path in paths:
        for row in rows_with_mask(read_part(path).select(["status", "classes"])).slice(0, 1).to_pylist():
            return class_names(row)
    return ONE_CLASS


def rows_with_mask(rows: pa.Table) -> pa.Table:
    """Keep the rows that have a predicted mask."""
    return rows.filter(pa.compute.is_in(rows.column("status"), pa.array(USABLE)))


def evaluate_query(rows: pa.Table, where: str) -> NDArray[np.bool_]:
    """Return which rows satisfy a pandas query over their columns; all of them for an empty query.

    To query the values of one class, append their columns with `add_class_columns` first.

    Raises:
        SettingsError: the query is invalid, or is not a condition.

    """
    frame = rows.drop_columns(list(_MASKS)).to_pandas()
    for name in _NAMES:
        frame[name] = frame[name].map(normal_form, na_action="ignore")
    where = normal_form(where)
    if not where:
        return np.ones(len(frame), bool)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = frame.eval(where, engine="python")
    except Exception as error:  # an invalid query raises exceptions of many types
        message = first_line(error)
        raise SettingsError(f"--where {where!r}: {message}; the columns are {', '.join(frame.columns)}") from None
    # The result for a table without rows has no meaningful dtype.
    if np.shape(result) != (len(frame),) or (len(frame) and result.dtype != bool):
        raise SettingsError(f'--where {where!r}: expected true or false for each row, as in "dice < 0.9"')
    return np.asarray(result, bool)


def refuse_invalid_query(where: str, classes: Sequence[str]) -> None:
    """Refuse a query that does not fit the columns of these classes, before the parts are verified and selected.

    Raises:
        SettingsError: the query is invalid.

    """
    evaluate_query(add_class_columns(PREDICTIONS.empty_table(), classes), where)


def select_rows(paths: list[str], settings: ExportSettings, classes: Sequence[str] = ONE_CLASS) -> list[Row]:
    """Evaluate the query over all parts at once, so that it may use statistics such as a quantile, then rank by doubt.

    classes: of the model; the query may use their columns, such as heart_px.

    Returns one `{"path", "rows", "max_doubt"}` per part; rows: indices into its rows with a mask, or None for all.
    max_doubt: the highest usual doubt of all rows, None where it does not matter.

    Raises:
        SettingsError: the query is invalid, or is not a condition.

    """
    needs_doubt = "dicom-seg" in settings.formats and not settings.include_doubtful
    if not (settings.where or settings.worst or needs_doubt):
        return [{"path": path, "rows": None, "max_doubt": None} for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        queried = classes if settings.where else ONE_CLASS
        tables = list(pool.map(lambda path: _read_without_masks(path, queried), paths))
    rows = pa.concat_tables(tables)
    is_selected = evaluate_query(rows, settings.where)
    if settings.worst:
        is_selected = _keep_most_doubtful(rows, is_selected, settings.worst)
    max_doubt = highest_usual_doubt(rows.column("doubt").to_pylist()) if needs_doubt else None
    ends = np.cumsum([table.num_rows for table in tables])[:-1]
    return [
        {"path": path, "rows": np.flatnonzero(of_part).tolist(), "max_doubt": max_doubt}
        for path, of_part in zip(paths, np.split(is_selected, ends), strict=True)
    ]


def _keep_most_doubtful(rows: pa.Table, is_selected: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    doubts = rows.select(["flags", "doubt"]).to_pylist()
    candidates = np.flatnonzero(is_selected).tolist()
    kept = np.zeros_like(is_selected)
    kept[heapq.nsmallest(count, candidates, key=lambda number: doubt_key(doubts[number]))] = True
    return kept


def _read_without_masks(path: str, classes: Sequence[str]) -> pa.Table:
    """Read the rows with a mask, with columns for the classes; masks are nulls, to save memory."""
    rows = add_class_columns(rows_with_mask(read_part(path)), classes)
    for name in _MASKS:
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, name, pa.nulls(rows.num_rows, PREDICTIONS.field(name).type))
    return rows.replace_schema_metadata(None)
