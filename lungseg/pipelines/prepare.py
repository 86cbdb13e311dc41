"""Prepare an archive on a cluster: one Ray Data task per shard."""

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from lungseg import storage
from lungseg.arrays import Grey
from lungseg.cluster.connection import connect
from lungseg.cluster.gauges import Gauges
from lungseg.cluster.resources import require_cpus
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import PrepareSettings, PreprocessSettings
from lungseg.config.class_names import annotated_by
from lungseg.dataset import catalog
from lungseg.dataset.duplicate_audit import linked_images
from lungseg.dataset.duplicates import count_duplicates
from lungseg.errors import ImageError, InputError, SettingsError, TaskResult
from lungseg.imaging import codecs
from lungseg.imaging.dicom import reader
from lungseg.imaging.geometry import prepare_image
from lungseg.imaging.intensity import compute_landmarks
from lungseg.ingest import file_names, pseudonyms, record_checks, sources
from lungseg.ingest.reason_codes import is_unmatched_mask
from lungseg.job_end import command, end_job
from lungseg.pipelines import verify_dataset
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.plurals import counted
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards, planned_ids
from lungseg.prepare.shard_task import write_planned_shard
from lungseg.prepare.summary import Summary, WrittenTotals, print_summary, summarise, summary_losses
from lungseg.progress import ProgressLine
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_SNIFFED_FILES, _SNIFFED_BYTES = 16, 512  # number of files read to detect DICOM, and bytes of each
_TRIAL_IMAGE = np.add.outer(np.arange(64, dtype=np.uint8), np.arange(64, dtype=np.uint8))
_CPUS_PER_TASK = 0.66  # three tasks on two cores: a core works while one task waits for its disk or for Ray
_MAX_REFERENCES = 64  # images for landmarks: their mean hardly changes with more
_MAX_WARNINGS = 3  # one line per unusable reference image


def run(settings: PrepareSettings) -> None:
    """Turn an archive into prepared datasets; shards that an earlier run finished are kept.

    Raises:
        LungsegError: there is no archive, none of its images is usable, or the cluster has no CPU.

    """
    out = storage.resolve(settings.out)
    if settings.verify:
        verify_dataset.run(out)
        return
    key = pseudonyms.read_key(settings.patient_key)
    preprocess = _with_landmarks(settings)
    prepare_image(_TRIAL_IMAGE, preprocess)  # refuses conflicting settings before any work
    logger.info("listing images")
    records = _records(settings, out, key)
    _require_key(records, key)
    _require_masks(records, preprocess.classes)
    plans = plan_shards(records, out, preprocess, settings.images_per_shard, settings.shard_mib, settings.odd_masks)
    folders = list(dict.fromkeys(plan.folder for plan in plans))
    images_listed = sum(not is_unmatched_mask(record) for record in records)
    sizes = counted(images_listed, "image"), counted(len(folders), "dataset"), counted(len(plans), "tar")
    logger.info("%s, %s, %s", *sizes)
    inputs = sum(len(plan.records) for plan in plans)
    first = [record.image_uri for record in records if record.usable][:_SNIFFED_FILES]
    del records  # the plans hold them
    dataset_writer.begin_datasets(plans)
    connect()
    require_cpus(1)
    require_shared_storage(out, archive=first)
    began = time.monotonic()
    totals = _write_shards(plans, inputs, key)
    plans = [replace(plan, records=()) for plan in plans]  # to finish, the names of the tars are enough
    logger.info("writing manifests and indexes")
    infos, errors = _finish(plans, folders)
    seconds = time.monotonic() - began
    pa.default_memory_pool().release_unused()  # of the tables that were written
    if not infos:
        raise InputError("; ".join(errors))
    data = [catalog.open_dataset(folder) for folder in catalog.list_datasets(out)]
    summary = summarise(infos, totals, count_duplicates(linked_images(data, out)), seconds, errors)
    storage.write_json(storage.join(out, "summary.json"), summary)
    print_summary(summary, out)
    _end(settings, out, summary, errors)


def _end(settings: PrepareSettings, out: str, summary: Summary, errors: Sequence[str]) -> None:
    """Log what was lost and the next command.

    Raises:
        InputError: a dataset has no usable image.
        LungsegError: something was lost, and the job is strict.

    """
    losses = summary_losses(summary)
    if errors:
        end_job(losses, strict=False)
        raise InputError("; ".join(errors))
    has_masks = any(info["with_mask"] for info in summary["datasets"].values())
    train = command("train", "demo" if settings.phantoms else "small", "--data", out)
    infer = command("infer", "archive", "--archive", out, "--checkpoint", "STUDY")
    end_job(losses, settings.strict, train if has_masks else infer)


def _finish(plans: Sequence[ShardPlan], folders: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Finish each dataset; return their infos, and the errors of datasets without a usable image."""
    infos, errors = [], []
    for folder in folders:
        try:
            infos.append(dataset_writer.finish_dataset([plan for plan in plans if plan.folder == folder]))
        except InputError as error:
            errors.append(str(error))
    return infos, errors


def _with_landmarks(settings: PrepareSettings) -> PreprocessSettings:
    """Compute the landmarks of histogram `match` from the images of `match_to`, where it is set."""
    preprocess = settings.preprocess
    if not settings.match_to:
        return preprocess
    if preprocess.histogram != "match":
        raise SettingsError("--match-to is for --preprocess.histogram match: pass both")
    if preprocess.landmarks:
        raise SettingsError("--match-to computes landmarks and --preprocess.landmarks sets them: pass one of them")
    source = storage.resolve(settings.match_to)
    is_file = storage.try_stat(source) is not None
    paths = [source] if is_file else [record.image_uri for record in sources.discover(source) if record.usable]
    references = paths[:: -(-len(paths) // _MAX_REFERENCES)]
    logger.info("computing landmarks from %d of %s in %s", len(references), counted(len(paths), "image"), source)
    return preprocess.model_copy(update={"landmarks": _compute_landmarks(references, source)})


def _compute_landmarks(paths: Sequence[str], source: str) -> tuple[float, ...]:
    """Compute landmarks from the usable images of a list, and warn about the others.

    Raises:
        InputError: none is usable.

    """
    errors: list[str] = []

    def usable_images() -> Iterator[Grey]:  # one at a time in memory
        for path in paths:
            try:
                yield _read_match_image(path)
            except InputError as error:
                errors.append(str(error))

    try:
        landmarks = compute_landmarks(usable_images())
    except InputError:
        raise InputError(
            f"--match-to {source}: none of {counted(len(paths), 'image')} is usable: {errors[0]}"
        ) from None
    for error in errors[:_MAX_WARNINGS]:
        logger.warning("not used for landmarks: %s", error)
    if len(errors) > _MAX_WARNINGS:
        logger.warning(
            "%d more of %s not used for landmarks", len(errors) - _MAX_WARNINGS, counted(len(paths), "image")
        )
    return landmarks


def _read_match_image(path: str) -> Grey:
    name = storage.name_of(path)
    image = codecs.decode(storage.read_bytes(path), name)
    try:
        compute_landmarks([image])
    except ImageError as error:  # raised without a file name
        raise ImageError(error.code, f"{name} has one grey value only, expected an X-ray: remove it") from None
    return image


def _records(settings: PrepareSettings, out: str, key: bytes | None) -> list[Record]:
    """List the records of the archive; images that an earlier run planned keep their ids."""
    records = _list(settings, out, key)
    planned = planned_ids(records, out)
    if settings.listing:
        records = sources.keep_ids(records, planned)
    checked = record_checks.reject_duplicate_ids(records, planned)
    return [*record_checks.flag_missing_masks(checked, settings.preprocess.classes)]


def _list(settings: PrepareSettings, out: str, key: bytes | None) -> list[Record]:
    if settings.images:
        images, masks = (storage.resolve(path) if path else "" for path in (settings.images, settings.masks))
        return sources.pair_folders(images, masks, settings.dataset or sources.dataset_name(images))
    if settings.listing:
        records = sources.read_listing(
            storage.resolve(settings.listing), settings.columns, settings.dataset, settings.preprocess.classes
        )
        return [sources.pseudonymise_patient(record, key) for record in records] if key else records
    if settings.source:
        return sources.discover(storage.resolve(settings.source), settings.dataset, settings.preprocess.classes)
    if not settings.phantoms:
        raise SettingsError(
            "no archive named: pass --source FOLDER, --images FOLDER, --listing FILE, or --phantoms N to draw some"
        )
    classes = settings.preprocess.classes
    return sources.discover(draw_phantoms(out, settings.phantoms, classes), classes=classes)


def _require_key(records: Sequence[Record], key: bytes | None) -> None:
    """Refuse DICOM without a key, which is needed to replace patient ids by pseudonyms.

    Files are recognized by name, and the first ones without a suffix by content.

    Raises:
        SettingsError: there is DICOM and no key.

    """
    dicom = next((uri for record in records if file_names.has_dicom_suffix(uri := record.image_uri)), None)
    unnamed = [record.image_uri for record in records if file_names.has_no_known_suffix(record.image_uri)]
    dicom = dicom or next((uri for uri in unnamed[:_SNIFFED_FILES] if _begins_as_dicom(uri)), None)
    if dicom and key is None:
        raise SettingsError(
            f"{dicom}: DICOM files identify patients; make a key for pseudonyms (openssl rand -hex 32 > KEYFILE) and "
            "pass --patient-key KEYFILE, or set LUNGSEG_PATIENT_KEY; do not store the key with the data"
        )


def _require_masks(records: Sequence[Record], requested: Sequence[str]) -> None:
    """Refuse an archive whose masks would all be ignored; warn about a requested class without masks.

    Raises:
        InputError: there are masks, but none of a requested class.

    """
    kinds = {kind for record in records if record.usable for kind in record.mask_classes}
    if not kinds:
        return
    names, available = ", ".join(sorted(kinds)), annotated_by(sorted(kinds), requested)
    if not available:
        raise InputError(
            f"the archive has masks of {names}, --preprocess.classes requests {', '.join(requested)}: all masks would "
            f"be ignored: pass --preprocess.classes {' '.join(sorted(kinds))}, or add masks of {requested[0]}"
        )
    missing = [kind for kind in requested if kind not in available]
    if missing:
        logger.warning(
            "the archive has masks of %s, not of %s: not annotated, so neither trained on nor tested here",
            names,
            ", ".join(missing),
        )


def _begins_as_dicom(uri: str) -> bool:
    try:
        return reader.is_dicom(storage.read_range(uri, 0, _SNIFFED_BYTES))
    except InputError:  # reported in its manifest row
        return False


def _write_shards(plans: Sequence[ShardPlan], inputs: int, key: bytes | None) -> WrittenTotals:
    """Write every shard in a Ray task; return the totals."""
    items = [{"plan": plan.to_json()} for plan in plans]
    write = functools.partial(write_planned_shard, key=key)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(write, num_cpus=_CPUS_PER_TASK)
    del items
    line, began, totals, gauges = ProgressLine(logger), time.monotonic(), WrittenTotals(), Gauges("prepare")
    for row in dataset.iter_rows():
        totals.add(TaskResult.from_json(row["result"]).unwrap())
        rate = totals.inputs / (time.monotonic() - began)
        gauges.set("images_per_second", rate)
        for status, count in totals.counts.items():
            gauges.set("rows", count, status)
        line.update(
            f"prepared {totals.inputs} of {counted(inputs, 'image')}, {rate:.0f}/s, "
            f"{(inputs - totals.inputs) / rate:.0f} s left"
        )
    return totals
