"""Segment an archive over a cluster: a plan of parts, each one Parquet file, written whole or not at all."""

import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.config.precision import require_fp16_device
from lungseg.errors import InputError, SettingsError, TaskResult
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.inference import part_plan, verify
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob, finish_part, open_part
from lungseg.inference.inputs import list_items
from lungseg.inference.items import PredictOptions
from lungseg.inference.part_plan import PlannedPart
from lungseg.inference.summary import StageTimes, print_image_summary, write_summary
from lungseg.ingest.pseudonyms import read_key
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint, ensemble_digest
from lungseg.predictions import parts
from lungseg.predictions.parts import StatusCounts
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What is to be done: all parts of the plan, what became of those that are done, and which are made again."""

    planned: Sequence[PlannedPart]
    kept: dict[int, StatusCounts]
    again: frozenset[int] = frozenset()

    @property
    def images(self) -> int:
        return sum(part.images for part in self.planned)

    @property
    def left(self) -> list[PlannedPart]:
        """What has never been done comes first: what failed before may fail again."""
        left = [part for part in self.planned if part.number not in self.kept]
        return sorted(left, key=lambda part: part.number in self.again)


def run(settings: InferSettings) -> None:
    """Predict every image of an archive once; parts that an earlier start wrote are kept.

    Raises:
        LungsegError: archive or checkpoint cannot be used, out holds other predictions, more images failed than are
            allowed, or the cluster is too small.

    """
    times, out = StageTimes(), storage.resolve(settings.out)
    if settings.verify:
        verify.run(out)
        return
    _require_named(settings, out)
    models = _models(settings)
    job = _job(settings, out, models)
    require_fp16_device(settings.precision, settings.device != "cpu", "--precision")
    work = _plan(settings, job, models)
    began = time.monotonic()
    total = functools.reduce(StatusCounts.add, work.kept.values(), StatusCounts.empty())
    _stop_if_hopeless(settings, work, total)
    if work.left:
        part_plan.discard_outdated(out, work.left)
        for account in _predict(job, work, times, total):
            total = account
            _stop_if_hopeless(settings, work, total)
    _require_all(out, work, total)
    storage.delete(storage.join(out, "begun"))
    storage.delete_unfinished(out)
    done = sum(part.images for part in work.left)
    write_summary(
        job, total, times, {"images": work.images, "predicted_now": done, "seconds": time.monotonic() - began}
    )
    if work.images == 1:
        print_image_summary(out)
        return
    said = ", ".join(f"{count} {status}" for status, count in total.counts().items())
    logger.info(
        "%d rows (%s) in %s; %d predicted now, in %.1f s", work.images, said, out, done, time.monotonic() - began
    )
    if total.without_mask():
        logger.info("without a mask: %s", total.describe_without_mask())


def _require_named(settings: InferSettings, out: str) -> None:
    """Make sure that an archive and a model are named, and that the predictions go elsewhere.

    Raises:
        SettingsError: one is not, or they would lie among the pictures.

    """
    if not settings.archive or not settings.checkpoint:
        raise SettingsError("pass --archive FOLDER (images or prepared data) and --checkpoint FOLDER (a finished run)")
    if storage.resolve(settings.archive) == out:
        raise SettingsError(f"--out {settings.out} is the archive itself: pass a folder for the predictions alone")


def _models(settings: InferSettings) -> list[Checkpoint]:
    """Find the models, which must agree on how pictures are prepared.

    Raises:
        LungsegError: one cannot be used, or they do not.

    """
    found = [one for folder in settings.checkpoint for one in checkpoint.find_all(storage.resolve(folder))]
    by_digest = {one.digest: one for one in found}
    models = list(by_digest.values())
    for model in models:
        checkpoint.require_tensors(model)  # whoever made them
        if not model.config.get("trained", True):
            logger.warning("%s: trained for %d of %d epochs so far", model.folder, model.epoch, model.config["epochs"])
        unlike = model.preprocess.differences(models[0].preprocess)
        if unlike:
            raise InputError(
                f"{model.folder} learnt from pictures prepared unlike those of {models[0].folder} ({unlike}): pass "
                "models that were trained on data prepared alike"
            )
        if model.config.get("adapted_to", {}).get("model") in by_digest:
            raise SettingsError(
                f"--checkpoint {model.folder}: was adapted from another of the models that are named, and each mask "
                "would be the mean of both: pass one of them"
            )
    return models


def _job(settings: InferSettings, out: str, models: Sequence[Checkpoint]) -> InferenceJob:
    chosen = [checkpoint.stored_threshold(model) for model in models]
    return InferenceJob(
        settings,
        out,
        tuple(model.folder for model in models),
        ensemble_digest(models),
        models[0].preprocess,
        settings.threshold or sum(chosen) / len(chosen),
        PredictOptions("cpu", settings.precision, settings.tta),
        read_key(settings.patient_key),
    )


def _plan(settings: InferSettings, job: InferenceJob, models: Sequence[Checkpoint]) -> _Work:
    """Say what the parts are made of; two plans that differ in anything that shows in a row never share a folder."""
    logger.info("listing images")
    items = list_items(settings, job.preprocess, job.key)
    plan = {
        "archive": storage.resolve(settings.archive),
        "images": len(items),
        "checkpoints": [model.folder for model in models],
        "model": job.model_digest,
        "runs": [model.config["run"] for model in models],
        "epochs": [model.epoch for model in models],
        "preprocess": job.preprocess.model_dump(mode="json"),
        "threshold": job.threshold,
        "precision": settings.precision,
        "tta": settings.tta,
        "postprocess": settings.postprocess.model_dump(mode="json"),
        "part_size": settings.part_size,
        "patients": pseudonym("", job.key) if job.key else "",  # tells keys apart and tells nothing of them
    }
    shown = storage.digest({name: value for name, value in plan.items() if name != "checkpoints"})
    starts = enumerate(range(0, len(items), settings.part_size))
    planned = [PlannedPart.of(number, items[start : start + settings.part_size], shown) for number, start in starts]
    part_plan.claim(job.out, {**plan, "digest": storage.digest([part.digest for part in planned])})
    kept = part_plan.find_finished(job.out, planned)
    logger.info(
        "%d images in %d parts (%d kept from before), model %s",
        len(items),
        len(planned),
        len(kept),
        _name(plan["runs"]),
    )
    there = set(parts.part_files(job.out))
    again = {
        part.number for part in planned if part.number not in kept and parts.part_path(job.out, part.number) in there
    }
    return _Work(planned, kept, frozenset(again))


def _name(runs: Any) -> str:
    return str(runs[0]) if len(runs) == 1 else f"the mean of {len(runs)} runs"


def _predict(job: InferenceJob, work: _Work, times: StageTimes, total: StatusCounts) -> Iterator[StatusCounts]:
    """Predict what is left, in this process where it is one image, else over the cluster; tell of all after each."""
    line, before, began = ProgressLine(logger), total.statuses.total(), 0.0
    rows = [{"number": part.number, "items": part.items, "digest": part.digest} for part in work.left]
    done = _here(job, rows) if work.images == 1 and job.settings.device != "gpu" else _over_cluster(job, rows, times)
    for row in done:
        part = TaskResult.from_json(row["result"]).unwrap()
        times.add(part["images"], part["times"])
        total = total.add(StatusCounts.from_json(part["account"]))
        now = total.statuses.total()
        pace = ""
        if began:
            rate = (now - before) / max(time.monotonic() - began, 1e-9)
            pace = f", {rate:.1f}/s, {(work.images - now) / rate:.0f} s left"
        else:  # starting up says nothing of what is left
            began, before = time.monotonic(), now
        lost = f", {total.without_mask()} without a mask" if total.without_mask() else ""
        line.update(f"{now} of {work.images} images{pace}{lost}")
        yield total


def _here(job: InferenceJob, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    require_fp16_device(job.settings.precision, False, "--precision")
    predict = PredictPart(job)
    for row in rows:
        opened = open_part(pa.Table.from_pylist([row]), job)
        yield from finish_part(predict(opened), job).to_pylist()


def _over_cluster(job: InferenceJob, rows: Sequence[dict[str, Any]], times: StageTimes) -> Iterator[dict[str, Any]]:
    # Imported only now: one picture is predicted without Ray.
    from lungseg.pipelines.infer_on_cluster import predict_on_cluster

    # Ray's core remarks, as an error, on how Ray Data starts its actors (ray issue 53727); real errors are raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    yield from predict_on_cluster(job, rows, times)


def _stop_if_hopeless(settings: InferSettings, work: _Work, total: StatusCounts) -> None:
    """Stop once more images are lost than the settings allow.

    Raises:
        InputError: they are.

    """
    allowed = settings.allowed_failures(work.images)
    if total.without_mask() > allowed:
        raise InputError(
            f"{total.without_mask()} of {total.statuses.total()} images so far have no mask "
            f"({total.describe_without_mask()}), --max-failed {settings.max_failed} allows {allowed} of "
            f"{work.images}; first: {'; '.join(total.examples)}: fix or remove these files, or allow more failures; "
            "finished parts are kept"
        )


def _require_all(out: str, work: _Work, total: StatusCounts) -> None:
    """Make sure that every image has its row.

    Raises:
        InputError: one has not.

    """
    there = len(parts.part_files(out))
    if total.statuses.total() != work.images or there != len(work.planned):
        raise InputError(
            f"{out}: {total.statuses.total()} rows in {there} parts, expected {work.images} in {len(work.planned)}: "
            "somebody else wrote there; delete it and run again"
        )
