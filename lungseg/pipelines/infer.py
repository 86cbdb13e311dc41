"""Segment an archive over a cluster: a plan of parts, each one Parquet file, written whole or not at all."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray.data

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.data import datasets, manifest, sources
from lungseg.data.dicom import read_key
from lungseg.engine import checkpoint
from lungseg.engine.segment import Item, Segmenter
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines.cluster import connect, share
from lungseg.pipelines.progress import ProgressLine
from lungseg.schema import PREDICTIONS, Record, table

logger = logging.getLogger(__name__)


def run(settings: InferSettings) -> None:
    """Predict every image of an archive once; parts that an earlier start wrote are kept.

    Raises:
        LungsegError: archive or checkpoint cannot be used, out holds other predictions, or the cluster is too small.

    """
    if not settings.archive or not settings.checkpoint:
        raise SettingsError("pass --archive FOLDER (images or prepared data) and --checkpoint FOLDER (a finished run)")
    archive, out = storage.resolve(settings.archive), storage.resolve(settings.out)
    model = checkpoint.find(storage.resolve(settings.checkpoint))
    if not model.config.get("trained", True):
        logger.warning("%s: trained for %d of %d epochs so far", model.folder, model.epoch, model.config["epochs"])
    items = _items(archive, model)
    parts = [items[start : start + settings.part] for start in range(0, len(items), settings.part)]
    plan = _plan(settings, archive, model, items)
    _claim(out, plan)
    left = [number for number in range(len(parts)) if not storage.exists(_part_path(out, number))]
    kept = len(parts) - len(left)
    logger.info("%d images in %d parts (%d kept from before), model %s", len(items), len(parts), kept, plan["run"])
    began = time.monotonic()
    todo = sum(len(parts[number]) for number in left)
    if left:
        chosen = {number: parts[number] for number in left}
        _predict_parts(settings, model, out, chosen, (len(items) - todo, len(items)))
    counts = _count(out, len(items))
    storage.write_json(
        storage.join(out, "predictions.json"), {"counts": counts, "images": len(items), "model": plan["model"]}
    )
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    logger.info(
        "%d rows (%s) in %s; %d predicted now, in %.1f s", len(items), said, out, todo, time.monotonic() - began
    )


def _items(archive: str, model: checkpoint.Checkpoint) -> list[Item]:
    """List what there is to predict: samples of prepared data, else the records of a folder."""
    if not storage.exists(archive):
        raise InputError(f"{archive}: no such folder: pass a folder of images, or of prepared data")
    prepared = datasets.datasets_in(archive)
    if not prepared:
        return [Item(record) for record in manifest.refuse_same_ids(sources.discover(archive))]
    items = []
    for data in map(datasets.open_dataset, prepared):
        if data.preprocess != model.preprocess:
            raise InputError(
                f"{data.folder} was prepared with {data.preprocess!r}, the model expects {model.preprocess!r}: "
                "prepare it so, or pass the folder of images"
            )
        items += [_prepared_item(data.folder, row) for row in data.index.to_pylist()]
    return items


def _prepared_item(folder: str, row: dict[str, Any]) -> Item:
    tar = storage.join(folder, f"{row['shard']}.tar")
    ids = {name: row[name] for name in ("image_id", "dataset", "patient_id", "finding", "sha256")}
    return Item(Record(image_uri=f"{tar}#{row['image_id']}", **ids), tar, row)


def _plan(settings: InferSettings, archive: str, model: checkpoint.Checkpoint, items: Sequence[Item]) -> dict[str, Any]:
    """Say what the parts are made of; two plans that differ in anything that shows in a row never share a folder."""
    plan = {
        "archive": archive,
        "images": len(items),
        "checkpoint": model.folder,
        "model": model.digest,
        "run": model.config["run"],
        "epoch": model.epoch,
        "preprocess": model.preprocess.model_dump(mode="json"),
        "threshold": settings.threshold,
        "postprocess": settings.postprocess,
        "part": settings.part,
    }
    files = dict.fromkeys(uri for item in items for uri in _files(item))  # a tar holds many items
    stats = [storage.stat_if_there(uri) for uri in files]  # what is not there becomes a row that says so
    return {**plan, "digest": storage.digest([plan, [asdict(item) for item in items], stats])}


def _files(item: Item) -> Sequence[str]:
    """Name the files that an item is read from."""
    return (item.tar,) if item.tar else (item.record.image_uri, *item.record.mask_uris)


def _claim(out: str, plan: dict[str, Any]) -> None:
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        storage.write_json(path, plan)
        return
    found = storage.read_json(path)
    if found["digest"] != plan["digest"]:
        changed = [name for name, value in plan.items() if name != "digest" and found.get(name) != value]
        what = ", ".join(changed) or "the archive's files"
        raise InputError(f"{out} holds predictions of another plan ({what} changed): pass another --out, or delete it")


def _predict_parts(
    settings: InferSettings, model: checkpoint.Checkpoint, out: str, parts: dict[int, list[Item]], done: tuple[int, int]
) -> None:
    # Ray's core remarks, as an error, on how Ray Data starts its actors (ray issue 53727); real errors are raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    connect()
    placed = share(settings.workers, settings.device)
    count = min(placed.workers, len(parts))
    logger.info("%d %s actors hold the model", count, "GPU" if placed.gpus else "CPU")
    rows = [
        {"path": _part_path(out, number), "items": json.dumps([asdict(item) for item in items])}
        for number, items in parts.items()
    ]
    arguments = {
        "folder": model.folder,
        "device": "cuda" if placed.gpus else "cpu",
        "settings": settings,
        "key": read_key(settings.patient_key),
    }
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _PartWriter,  # type: ignore[arg-type]  # Ray takes a class and makes an actor of it
        fn_constructor_kwargs=arguments,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=placed.cpus,
        num_gpus=placed.gpus,
    )
    line, began, before = ProgressLine(logger), time.monotonic(), done[0]
    now = before
    for row in results.iter_rows():
        if row["error"]:
            raise InputError(row["error"])
        now += row["images"]
        rate = (now - before) / (time.monotonic() - began)
        line.show(f"{now} of {done[1]} images, {rate:.1f} images/s, {(done[1] - now) / rate:.0f} s left")


class _PartWriter:
    """An actor that holds the model and turns a part's items into its file."""

    def __init__(self, folder: str, device: str, settings: InferSettings, key: bytes | None) -> None:
        self._segmenter = Segmenter(folder, device, settings, key)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write one part. What a user can mend is returned: raised in a task, Ray would turn it into a traceback."""
        items = [Item.from_dict(item) for item in json.loads(row["items"])]
        try:
            storage.write_table(row["path"], table(self._segmenter(items), PREDICTIONS))
        except InputError as refused:
            return {"images": 0, "error": str(refused)}
        return {"images": len(items), "error": ""}


def _part_path(out: str, number: int) -> str:
    return storage.join(out, f"part-{number:06d}.parquet")


def _count(out: str, images: int) -> dict[str, int]:
    """Count the parts' rows by status; every image must be there once.

    Raises:
        InputError: it is not, or a part cannot be read.

    """
    counts: Counter[str] = Counter()
    ids: set[tuple[str, str, str]] = set()
    parts = [path for path in storage.list_files(out, (".parquet",)) if storage.name_of(path).startswith("part-")]
    for path in parts:
        rows = storage.read_table(path).select(["dataset", "image_id", "source_uri", "status"]).to_pylist()
        counts.update(row["status"] for row in rows)
        ids.update((row["dataset"], row["image_id"], row["source_uri"]) for row in rows)
    if not counts.total() == len(ids) == images:
        raise InputError(
            f"{out}: {counts.total()} rows of {len(ids)} images, expected {images}: delete the folder and run again"
        )
    return dict(sorted(counts.items()))
