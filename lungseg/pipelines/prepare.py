"""Prepare an archive over a cluster: one Ray task a shard."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray.data

from lungseg import storage
from lungseg.config import PrepareSettings, PreprocessSettings
from lungseg.data import manifest, shards, sources
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines.cluster import connect, require_cpus
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.pipelines.progress import ProgressLine
from lungseg.schema import Record

logger = logging.getLogger(__name__)


def run(settings: PrepareSettings) -> None:
    """Turn an archive into prepared data sets; what an earlier start finished is kept.

    Raises:
        LungsegError: there is no archive, it holds nothing that can be used, or the cluster has no CPU.

    """
    out = storage.resolve(settings.out)
    records = manifest.refuse_same_ids(_records(settings, out))
    plans = shards.plan_shards(records, out, settings.preprocess, settings.images_per_shard)
    datasets = list(dict.fromkeys(plan.folder for plan in plans))
    logger.info("%d images in %d data sets, %d shards", len(records), len(datasets), len(plans))
    shards.begin_datasets(plans)
    connect()
    require_cpus(1)
    began = time.monotonic()
    parts = _write_shards(plans, len(records))
    for folder in datasets:
        own = [plan for plan in plans if plan.folder == folder]
        counts = shards.finish_dataset(own, [parts[folder, plan.name] for plan in own])
        said = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        logger.info("%s: %d inputs: %s", storage.name_of(folder), sum(counts.values()), said)
    seconds = time.monotonic() - began
    logger.info(
        "prepared %d images in %.1f s (%.0f images/s) in %s", len(records), seconds, len(records) / seconds, out
    )


def _records(settings: PrepareSettings, out: str) -> list[Record]:
    if settings.images:
        images, masks = (storage.resolve(path) if path else "" for path in (settings.images, settings.masks))
        return sources.pair(images, masks, settings.dataset or sources.dataset_name(images))
    if settings.source:
        return sources.discover(storage.resolve(settings.source), settings.dataset)
    if not settings.phantoms:
        raise SettingsError("no archive named: pass --source FOLDER, --images FOLDER, or --phantoms N to draw some")
    return sources.discover(draw_phantoms(out, settings.phantoms))


def _write_shards(plans: Sequence[shards.ShardPlan], images: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Write every shard, one Ray task each; return the parts by folder and shard."""
    items = [{"plan": _to_json(plan)} for plan in plans]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(_write_shard)
    line = ProgressLine(logger)
    parts, done = {}, 0
    for row in dataset.iter_rows():
        if row["error"]:
            raise InputError(row["error"])
        part = json.loads(row["part"])
        parts[row["folder"], row["name"]] = part
        done += len(part["records"])
        line.show(f"prepared {done} of {images} images")
    return parts


def _write_shard(row: dict[str, Any]) -> dict[str, Any]:
    """Write one shard. What a user can mend is returned: raised in a task, Ray would turn it into a traceback."""
    plan = _from_json(row["plan"])
    part, error = {}, ""
    try:
        part = shards.write_shard(plan)
    except InputError as refused:
        error = str(refused)
    return {"folder": plan.folder, "name": plan.name, "part": json.dumps(part), "error": error}


def _to_json(plan: shards.ShardPlan) -> str:
    """Plans travel as text: Ray Data would guess a column's type from a nested object, anew for each block."""
    records = [asdict(record) for record in plan.records]
    return json.dumps([plan.folder, plan.name, records, plan.preprocess.model_dump()])


def _from_json(text: str) -> shards.ShardPlan:
    folder, name, records, preprocess = json.loads(text)
    made = tuple(Record.from_dict(record) for record in records)
    return shards.ShardPlan(folder, name, made, PreprocessSettings.model_validate(preprocess))
