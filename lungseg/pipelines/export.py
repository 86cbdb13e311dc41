"""Export predictions to files of other tools: PNG masks, overlays, COCO annotations, DICOM segmentations."""

import functools
import json
import logging
from collections.abc import Iterator
from typing import Any

import ray.data

from lungseg import storage
from lungseg.arrays import Row
from lungseg.cluster.connection import connect
from lungseg.cluster.resources import require_cpus
from lungseg.config import ExportSettings
from lungseg.errors import InputError, SettingsError, TaskResult
from lungseg.export import nnunet
from lungseg.export.coco_file import to_coco
from lungseg.export.selection import (
    predicted_classes,
    refuse_invalid_query,
    require_outside_archive,
    reserve_output,
    select_rows,
    verified_parts,
)
from lungseg.export.totals import ExportTotals
from lungseg.export.writers import export_part
from lungseg.imaging.dicom.segmentation import require_highdicom
from lungseg.job_end import end_job
from lungseg.plurals import counted
from lungseg.predictions.parts import part_files
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_SHOWN_NOTES = 5


def run(settings: ExportSettings) -> None:
    """Write the selected rows of a folder of predictions as files.

    Raises:
        LungsegError: there are no predictions, the query is invalid, a file name would leave the output folder, or a
            format has no file.

    """
    if "dicom-seg" in settings.formats:
        require_highdicom()
    folder, out = _predictions_folder(settings), storage.resolve(settings.out)
    classes = predicted_classes(part_files(folder))
    refuse_invalid_query(settings.where, classes)
    require_outside_archive(folder, out)
    parts = verified_parts(folder)
    selected = select_rows(parts, settings, classes)
    if nnunet.FORMAT in settings.formats:
        nnunet.require_label_map(classes)
        folders = nnunet.dataset_folders(parts)
        selected = [{**part, "nnunet_folders": folders} for part in selected]
    reserve_output(out, folder, settings)
    connect()
    require_cpus(1)
    totals = ExportTotals()
    coco: list[Row] = []
    progress = ProgressLine(logger)
    for number, result in enumerate(_export_parts(selected, settings, out), start=1):
        totals.add(result)
        coco += result["coco"]
        progress.update(f"exported {number} of {counted(len(selected), 'part')}")
    if "coco" in settings.formats:
        coco.sort(key=lambda row: (row["dataset"], row["image_id"], row["source_uri"]))  # parts finish in any order
        storage.write_json(storage.join(out, "annotations.json"), to_coco(coco, folder))
    if nnunet.FORMAT in settings.formats:
        nnunet.write_dataset_files(storage.join(out, nnunet.FORMAT), classes)
    totals.record(out)
    _log_result(settings, out, totals)
    end_job({"refused_exports": totals.counts["refused"]}, settings.strict)


def _predictions_folder(settings: ExportSettings) -> str:
    if not settings.predictions:
        raise SettingsError("no predictions named: pass --predictions FOLDER (the --out of lungseg infer)")
    folder = storage.resolve(settings.predictions)
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder: pass the --out of lungseg infer")
    if not storage.exists(storage.join(folder, "predictions.json")):
        if storage.exists(storage.join(folder, "predictions.parquet")):
            raise InputError(
                f"{folder}: written by lungseg segment, which has --formats of its own; export needs the --out of "
                "lungseg infer"
            )
        raise InputError(
            f"{folder}: no predictions.json, expected a finished inference: run the same lungseg infer command again"
        )
    return folder


def _export_parts(parts: list[Row], settings: ExportSettings, out: str) -> Iterator[dict[str, Any]]:
    export = functools.partial(export_part, settings=settings, out=out)
    items = [{"part": json.dumps(part)} for part in parts]
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(export).iter_rows():
        yield TaskResult.from_json(row["result"]).unwrap()


def _log_result(settings: ExportSettings, out: str, totals: ExportTotals) -> None:
    """Log notes and counts.

    Raises:
        InputError: rows were selected, but a format has no file.

    """
    counts = totals.counts
    notes = sorted(totals.notes, key=lambda note: not note.startswith("no "))  # what was not written comes first
    for note in notes[:_SHOWN_NOTES]:
        logger.warning("%s", note)
    if len(notes) > _SHOWN_NOTES:
        logger.warning("and %d more", len(notes) - _SHOWN_NOTES)
    written = totals.describe_written(settings.formats)
    rows = counted(counts["rows"], "row")
    logger.info("%d of %s selected; written to %s: %s", counts["selected"], rows, out, written)
    for line in totals.lines():
        logger.warning("%s", line)
    if not counts["selected"]:
        reason = f"--where {settings.where!r} matches no row with a mask" if settings.where else "no row has a mask"
        logger.warning("no row was selected: %s", reason)
        return
    missing = [name for name in settings.formats if not counts[name]]
    if missing:
        first = next(note for note in notes if note.startswith(f"no {missing[0]} of "))
        raise InputError(f"none of {counts['selected']} rows could be exported as {', '.join(missing)}: {first}")
