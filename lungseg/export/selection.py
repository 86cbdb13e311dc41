"""Which predictions an export takes: all parts that an inference ended with, and the rows for which a query holds."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ExportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.predictions.parts import part_files, read_part, recorded_digests
from lungseg.schema import USABLE
from lungseg.storage.files import digest_bytes

Row = dict[str, Any]

_READERS = 8  # threads that read parts; in a bucket, reading is waiting


def require_outside_archive(folder: str, out: str) -> None:
    """Refuse to write among an archive's pictures, where its next reader would find them.

    Raises:
        InputError: --out is the archive's folder, or lies in it.

    """
    archive = str(storage.read_json(storage.join(folder, "plan.json"))["archive"])
    if storage.is_inside(out, archive):
        raise InputError(f"--out {out} lies in the archive {archive}: pass a folder outside of it")


def reserve_output(out: str, folder: str, settings: ExportSettings) -> None:
    """Take an output folder for an export, or find it taken for the same one: two would lie there as if they were one.

    Raises:
        InputError: it holds an export of other predictions or another query, or files of none.

    """
    path = storage.join(out, "export.json")
    told = storage.digest(sorted(recorded_digests(folder).items()))
    export = {"predictions": folder, "parts": told, "where": settings.where}
    if storage.exists(path):
        found = storage.read_json(path)
        changed = [name for name, value in export.items() if found.get(name) != value]
        if changed:
            raise InputError(
                f"{out} holds another export ({', '.join(changed)} changed): pass another --out, or delete it"
            )
        return
    strangers = [kind for kind in settings.formats if kind != "coco" and storage.list_folders(storage.join(out, kind))]
    if strangers:
        raise InputError(f"{out}/{strangers[0]} holds files, but there is no export.json: pass another --out")
    storage.write_json(path, export)


def verified_parts(folder: str) -> list[str]:
    """List the parts, which must be those that the inference ended with.

    Raises:
        InputError: one is missing, was changed, or is of another plan.

    """
    told = recorded_digests(folder)
    paths = part_files(folder)
    there = {storage.name_of(path): path for path in paths}
    with ThreadPoolExecutor(_READERS) as pool:
        digests = dict(zip(there, pool.map(lambda path: digest_bytes(storage.read_bytes(path)), paths), strict=True))
    wrong = sorted(name for name in told.keys() | there.keys() if digests.get(name) != told.get(name))
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} of {len(told)} parts are missing or not as predictions.json tells them (first: "
            f"{wrong[0]}): run the same jobs/infer.py again"
        )
    return paths


def rows_with_mask(rows: pa.Table) -> pa.Table:
    """Leave out the rows that have no mask."""
    return rows.filter(pa.compute.is_in(rows.column("status"), pa.array(USABLE)))


def evaluate_query(rows: pa.Table, where: str) -> NDArray[np.bool_]:
    """Say for which of these rows, of all parts, a query over their columns holds, as pandas asks it.

    Raises:
        SettingsError: the query cannot be asked.

    """
    frame = rows.drop_columns(["mask"]).to_pandas()
    if not where:
        return np.ones(len(frame), bool)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = frame.eval(where, engine="python")
    except Exception as error:  # whatever a user may type ends in many kinds of them
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"--where {where!r}: {first}; the columns are {', '.join(frame.columns)}") from None
    # Of no rows, a column of text is neither.
    if np.shape(found) != (len(frame),) or (len(frame) and found.dtype != bool):
        raise SettingsError(f'--where {where!r}: not true or false for each row: ask as in "dice < 0.9"')
    return np.asarray(found, bool)


def select_rows(paths: list[str], where: str) -> list[Row]:
    """Choose rows over all parts: each part's path, and which of its predicted rows are chosen; None where all are.

    Raises:
        SettingsError: the query cannot be asked.

    """
    if not where:
        return [{"path": path, "rows": None} for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda path: _without_masks(read_part(path)), paths))
    holds = evaluate_query(pa.concat_tables(tables), where)
    ends = np.cumsum([table.num_rows for table in tables])[:-1]
    return [
        {"path": path, "rows": np.flatnonzero(of).tolist()}
        for path, of in zip(paths, np.split(holds, ends), strict=True)
    ]


def _without_masks(rows: pa.Table) -> pa.Table:
    found = rows_with_mask(rows)
    place = found.schema.get_field_index("mask")
    return found.set_column(place, "mask", pa.nulls(found.num_rows, pa.string())).replace_schema_metadata(None)
