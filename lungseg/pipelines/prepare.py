"""Prepare an archive over a cluster: one Ray Data task a shard."""

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
from lungseg.dataset import catalog, duplicates
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.errors import ImageError, InputError, SettingsError, TaskResult
from lungseg.imaging import codecs
from lungseg.imaging.dicom import reader
from lungseg.imaging.geometry import prepare_image
from lungseg.imaging.intensity import compute_landmarks
from lungseg.ingest import file_names, pseudonyms, record_checks, sources
from lungseg.pipelines import verify_dataset
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards, planned_ids
from lungseg.prepare.shard_task import write_planned_shard
from lungseg.prepare.summary import WrittenTotals, print_summary, summarise
from lungseg.progress import ProgressLine
from lungseg.schema import Record

logger = logging.getLogger(__name__)

_HEADS, _HEAD = 16, 512  # files, and bytes of each, that are looked into for DICOM
_TRIAL = np.add.outer(np.arange(64, dtype=np.uint8), np.arange(64, dtype=np.uint8))
_CPUS_A_TASK = 0.66  # three tasks on two cores: while one waits for its disk or for Ray, no core does
_REFERENCES = 64  # pictures that landmarks are learnt from, at most: their mean hardly moves after that
_TOLD = 3  # of those that cannot be used, each on its line


def run(settings: PrepareSettings) -> None:
    """Turn an archive into prepared data sets; what an earlier start finished is kept.

    Raises:
        LungsegError: there is no archive, it holds nothing that can be used, or the cluster has no CPU.

    """
    out = storage.resolve(settings.out)
    if settings.verify:
        verify_dataset.run(out)
        return
    key = pseudonyms.read_key(settings.patient_key)
    preprocess = _with_landmarks(settings)
    prepare_image(_TRIAL, preprocess)  # tells of settings that do not fit together before anything is touched
    logger.info("listing images")
    records = _records(settings, out, key)
    _require_key(records, key)
    _require_masks(records, preprocess.classes)
    plans = plan_shards(records, out, preprocess, settings.images_per_shard, settings.shard_mib, settings.odd_masks)
    folders = list(dict.fromkeys(plan.folder for plan in plans))
    sets = f"{len(folders)} data sets" if len(folders) > 1 else "one data set"
    logger.info("%d images in %s; tars: %d", len(records), sets, len(plans))
    inputs, first = len(records), [record.image_uri for record in records if record.usable][:_HEADS]
    del records  # the plans hold them
    dataset_writer.begin_datasets(plans)
    connect()
    require_cpus(1)
    require_shared_storage(out, archive=first)
    began = time.monotonic()
    work = _write_shards(plans, inputs, key)
    plans = [replace(plan, records=()) for plan in plans]  # what is left to do needs the tars' names alone
    logger.info("joining what the tasks said")
    infos, refused = _finish(plans, folders)
    pa.default_memory_pool().release_unused()  # of the tables that are written
    if not infos:
        raise InputError("; ".join(refused))
    data = [catalog.open_dataset(folder) for folder in catalog.list_datasets(out)]
    logger.info("audit: looking for copies among %d images", sum(part.index.num_rows for part in data))
    # Copies alone: a study looks for more, in the data sets that it chooses.
    pairs = audit_datasets(data, wide=False, show=ProgressLine(logger).update)
    storage.write_table(storage.join(out, "duplicates.parquet"), duplicates.pairs_to_table(pairs))
    summary = summarise(infos, work, pairs, time.monotonic() - began)
    storage.write_json(storage.join(out, "summary.json"), summary)
    print_summary(summary, out)
    if refused:
        raise InputError("; ".join(refused))


def _finish(plans: Sequence[ShardPlan], folders: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Finish each data set; one of which nothing can be used does not keep the others from it."""
    infos, refused = [], []
    for folder in folders:
        try:
            infos.append(dataset_writer.finish_dataset([plan for plan in plans if plan.folder == folder]))
        except InputError as error:
            refused.append(str(error))
    return infos, refused


def _with_landmarks(settings: PrepareSettings) -> PreprocessSettings:
    """Learn the landmarks of `match` where pictures are named to learn them from."""
    found = settings.preprocess
    if not settings.match_to:
        return found
    if found.histogram != "match":
        raise SettingsError("--match-to is for --preprocess.histogram match: pass both")
    if found.landmarks:
        raise SettingsError("--match-to learns landmarks and --preprocess.landmarks gives them: pass one of them")
    where = storage.resolve(settings.match_to)
    alone = storage.try_stat(where) is not None
    paths = [where] if alone else [record.image_uri for record in sources.discover(where)]
    chosen = paths[:: -(-len(paths) // _REFERENCES)]
    logger.info("learning landmarks from %d of %d pictures in %s", len(chosen), len(paths), where)
    return found.model_copy(update={"landmarks": _learn(chosen, where)})


def _learn(paths: Sequence[str], where: str) -> tuple[float, ...]:
    """Learn landmarks from those pictures that can be used, and warn of the others.

    Raises:
        InputError: not one can be used.

    """
    broken: list[str] = []

    def usable() -> Iterator[Grey]:  # one at a time in memory
        for path in paths:
            try:
                yield _read_reference(path)
            except InputError as error:
                broken.append(str(error))

    try:
        learnt = compute_landmarks(usable())
    except InputError:
        raise InputError(f"--match-to {where}: none of {len(paths)} can be used: {broken[0]}") from None
    for said in broken[:_TOLD]:
        logger.warning("no landmarks from %s", said)
    if len(broken) > _TOLD:
        logger.warning("nor from %d more of these %d pictures", len(broken) - _TOLD, len(paths))
    return learnt


def _read_reference(path: str) -> Grey:
    name = storage.name_of(path)
    image = codecs.decode(storage.read_bytes(path), name)
    try:
        compute_landmarks([image])
    except ImageError as error:  # it knows no names
        raise ImageError(error.reason, f"{name} holds one grey value, expected an X-ray: take it out") from None
    return image


def _records(settings: PrepareSettings, out: str, key: bytes | None) -> list[Record]:
    """List the archive's records, an id each; what an earlier start put into `out` keeps its own."""
    found = _list(settings, out, key)
    held = planned_ids(found, out)
    return record_checks.refuse_same_ids(sources.keep_ids(found, held) if settings.listing else found, held)


def _list(settings: PrepareSettings, out: str, key: bytes | None) -> list[Record]:
    if settings.images:
        pictures, masks = (storage.resolve(path) if path else "" for path in (settings.images, settings.masks))
        return sources.pair(pictures, masks, settings.dataset or sources.dataset_name(pictures))
    if settings.listing:
        listed = sources.from_listing(storage.resolve(settings.listing), settings.columns, settings.dataset)
        return [sources.hide_patient(record, key) for record in listed] if key else listed
    if settings.source:
        return sources.discover(storage.resolve(settings.source), settings.dataset)
    if not settings.phantoms:
        raise SettingsError(
            "no archive named: pass --source FOLDER, --images FOLDER, --listing FILE, or --phantoms N to draw some"
        )
    return sources.discover(draw_phantoms(out, settings.phantoms))


def _require_key(records: Sequence[Record], key: bytes | None) -> None:
    """Refuse DICOM without a key: patients could be told neither apart nor hidden.

    Raises:
        SettingsError: there is no key, and a file's name, or the head of one of the first without a suffix, is DICOM's.

    """
    found = next((uri for record in records if file_names.named_as_dicom(uri := record.image_uri)), None)
    unnamed = [record.image_uri for record in records if file_names.without_suffix(record.image_uri)][:_HEADS]
    found = found or next((uri for uri in unnamed if _begins_as_dicom(uri)), None)
    if found and key is None:
        raise SettingsError(
            f"{found}: DICOM names patients; make a key for pseudonyms (openssl rand -hex 32 > KEYFILE) "
            "and pass --patient-key KEYFILE, or set LUNGSEG_PATIENT_KEY; keep it apart from the data"
        )


def _require_masks(records: Sequence[Record], asked: Sequence[str]) -> None:
    """Refuse masks of which not one would be used, as none is read without its lungs; warn of a class without any.

    Raises:
        InputError: there are masks, but none of lungs, or lungs are not asked for.

    """
    found = {kind for record in records if record.usable for kind in record.mask_classes}
    if not found:
        return
    there = ", ".join(sorted(found))
    if "lung" not in found.intersection(asked):
        use = " ".join(["lung", *(kind for kind in asked if kind in found and kind != "lung")])
        advice = f"pass --preprocess.classes {use}" if "lung" in found else "add masks of lung, or leave these out"
        raise InputError(
            f"the archive has masks of {there}, --preprocess.classes asks for {', '.join(asked)}: not one would be "
            f"used, as masks are read where those of lung are there and asked for: {advice}"
        )
    missing = [kind for kind in asked if kind not in found]
    if missing:
        logger.warning("no mask of %s in the archive, only of %s: it will be background", ", ".join(missing), there)


def _begins_as_dicom(uri: str) -> bool:
    try:
        return reader.is_dicom(storage.read_range(uri, 0, _HEAD))
    except InputError:  # its row will say so
        return False


def _write_shards(plans: Sequence[ShardPlan], inputs: int, key: bytes | None) -> WrittenTotals:
    """Write every shard, one Ray task each; add up what they say."""
    items = [{"plan": plan.to_json()} for plan in plans]
    write = functools.partial(write_planned_shard, key=key)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(write, num_cpus=_CPUS_A_TASK)
    del items
    line, began, work, gauges = ProgressLine(logger), time.monotonic(), WrittenTotals(), Gauges("prepare")
    for done in _results(dataset):
        work.add(done)
        rate = work.inputs / (time.monotonic() - began)
        gauges.set("images_per_second", rate)
        for status, count in work.counts.items():
            gauges.set("rows", count, status)
        line.update(
            f"prepared {work.inputs} of {inputs} images, {rate:.0f}/s, {(inputs - work.inputs) / rate:.0f} s left"
        )
    return work


def _results(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for row in dataset.iter_rows():
        yield TaskResult.from_json(row["result"]).unwrap()
