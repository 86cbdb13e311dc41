"""Predictions to files that other tools open: PNG masks, overlays, COCO annotations, DICOM segmentations."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray.data

from lungseg import storage
from lungseg.arrays import Row
from lungseg.cluster.connection import connect
from lungseg.cluster.resources import require_cpus
from lungseg.config import ExportSettings
from lungseg.errors import InputError, SettingsError, TaskResult
from lungseg.export.selection import (
    evaluate_query,
    require_outside_archive,
    reserve_output,
    select_rows,
    verified_parts,
)
from lungseg.export.writers import export_part, to_coco
from lungseg.progress import ProgressLine
from lungseg.schema import PREDICTIONS

logger = logging.getLogger(__name__)


_SHOWN_NOTES = 5


def run(settings: ExportSettings) -> None:
    """Write the chosen rows of a folder of predictions as files.

    Raises:
        LungsegError: there are no predictions, the query cannot be asked, or a name leaves the output folder.

    """
    folder, out = _folder(settings), storage.resolve(settings.out)
    evaluate_query(
        PREDICTIONS.empty_table(), settings.where
    )  # tells of a query that cannot be asked before anything is done
    require_outside_archive(folder, out)
    paths = verified_parts(folder)
    chosen = select_rows(paths, settings.where)
    reserve_output(out, folder, settings)
    connect()
    require_cpus(1)
    counts: Counter[str] = Counter()
    notes: list[str] = []
    coco: list[Row] = []
    line = ProgressLine(logger)
    for number, done in enumerate(_over_cluster(chosen, settings, out), start=1):
        counts.update(done["counts"])
        notes += done["notes"]
        coco += done["coco"]
        line.update(f"exported {number} of {len(paths)} parts")
    coco.sort(key=lambda row: (row["dataset"], row["image_id"], row["source_uri"]))  # parts end in any order
    if "coco" in settings.formats:
        storage.write_json(storage.join(out, "annotations.json"), to_coco(coco, folder))
    for note in notes[:_SHOWN_NOTES]:
        logger.warning("%s", note)
    if len(notes) > _SHOWN_NOTES:
        logger.warning("and %d more", len(notes) - _SHOWN_NOTES)
    said = ", ".join(f"{counts[name]} {name}" for name in settings.formats)
    logger.info("%d of %d rows chosen; written to %s: %s", counts["chosen"], counts["rows"], out, said)
    if not counts["chosen"]:
        logger.warning("no row was chosen: --where %r holds for none that has a mask", settings.where)
        return
    lacking = [name for name in settings.formats if not counts[name]]
    if lacking:
        first = next(note for note in notes if note.startswith(f"no {lacking[0]} of "))
        raise InputError(f"not one of {counts['chosen']} rows could be exported as {', '.join(lacking)}: {first}")


def _folder(settings: ExportSettings) -> str:
    """Find the predictions that are meant."""
    if not settings.predictions:
        raise SettingsError("no predictions named: pass --predictions FOLDER (the --out of jobs/infer.py)")
    folder = storage.resolve(settings.predictions)
    if not storage.exists(folder):
        raise InputError(f"{folder}: no such folder: pass the --out of jobs/infer.py")
    if not storage.exists(storage.join(folder, "predictions.json")):
        raise InputError(
            f"{folder}: no predictions.json in it, expected what a finished jobs/infer.py wrote: finish it"
        )
    return folder


def _over_cluster(chosen: list[Row], settings: ExportSettings, out: str) -> Iterator[dict[str, Any]]:
    export = functools.partial(export_part, settings=settings, out=out)
    items = [{"part": json.dumps(part)} for part in chosen]
    for row in ray.data.from_items(items, override_num_blocks=len(items)).map(export).iter_rows():
        yield TaskResult.from_json(row["result"]).unwrap()
