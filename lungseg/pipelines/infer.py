"""Segment an archive. The images are divided into parts; each part is one Parquet file, written atomically."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import InferSettings
from lungseg.config.options import require_options
from lungseg.config.precision import require_fp16_device
from lungseg.errors import InputError, SettingsError, TaskResult
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.inference import recompute
from lungseg.inference.actor import PredictPart
from lungseg.inference.class_summary import ClassTotals
from lungseg.inference.cpu_tasks import MARKERS, InferenceJob, finish_part, open_part
from lungseg.inference.inputs import count_skipped, list_items
from lungseg.inference.items import PredictOptions
from lungseg.inference.job_backend import require_same_backend, with_backend, with_cpu_backend
from lungseg.inference.model_selection import find_models, mean_thresholds, require_flippable
from lungseg.inference.plan_stream import PlanStream
from lungseg.inference.ranking_files import log_most_doubtful, write_csv
from lungseg.inference.rows import planned_thresholds
from lungseg.inference.schedule import Schedule
from lungseg.inference.summary import StageTimes, log_counts, print_image_summary, write_summary
from lungseg.ingest.lost_inputs import lost_inputs
from lungseg.ingest.pseudonyms import read_key
from lungseg.job_end import command, end_job
from lungseg.model import sources
from lungseg.model.checkpoint import Checkpoint, ensemble_digest
from lungseg.model.custom_code import NETWORK, source_digest
from lungseg.plurals import counted
from lungseg.predictions import parts
from lungseg.predictions.parts import StatusCounts
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_PLAN_FORMAT = 2  # of the items and digests of parts; plans of earlier versions have none


@dataclass(frozen=True)
class Finished:
    """A finished inference: counts of all rows and of those of earlier runs, the most doubtful rows, the classes."""

    counts: StatusCounts
    kept: StatusCounts
    most_doubtful: list[Row]
    totals: ClassTotals


def run(settings: InferSettings) -> None:
    """Predict every image of an archive once. Parts of an earlier, interrupted run are kept.

    Raises:
        LungsegError: the archive or a checkpoint cannot be used, --out holds other predictions, no image has a mask,
            too many images failed, or the cluster is too small.

    """
    out = storage.resolve(settings.out)
    if settings.verify:
        recompute.run(out)
        return
    began = time.monotonic()
    finished = predict(settings)
    if finished.counts.statuses.total() == 1:
        print_image_summary(out)
    else:
        log_counts(out, finished.counts, finished.kept, time.monotonic() - began)
        finished.totals.log()
        log_most_doubtful(finished.most_doubtful)
    _end(settings, out, finished.counts)


def predict(settings: InferSettings) -> Finished:
    """Predict as `run` does, without a summary on the terminal.

    Raises:
        LungsegError: as `run`.

    """
    times, out = StageTimes(), storage.resolve(settings.out)
    _require_folders(settings, out)
    models = find_models(settings.checkpoint, settings.model.custom)
    settings = with_cpu_backend(settings, models)
    require_flippable(models, settings.tta)
    require_same_backend(settings, out)
    job = _create_job(settings, out, models)
    require_fp16_device(settings.precision, settings.device != "cpu", "--precision")
    schedule = _plan_parts(settings, job, models)
    began = time.monotonic()
    counts = _predict_remaining(settings, job, schedule, times)
    _require_all(out, schedule, counts)
    storage.delete(storage.join(out, MARKERS))
    storage.delete_unfinished(out)
    totals = ClassTotals(tuple(job.thresholds))
    most_doubtful = write_csv(out, tuple(job.thresholds), totals)
    write_summary(job, counts, schedule.kept, times, time.monotonic() - began, totals)
    return Finished(counts, schedule.kept, most_doubtful, totals)


def _end(settings: InferSettings, out: str, counts: StatusCounts) -> None:
    """Log what was lost and the next command.

    Raises:
        LungsegError: no image has a mask, or something was lost and the job is strict.

    """
    losses = lost_inputs(counts.statuses, ((*key, count) for key, count in counts.codes.items()))
    losses["skipped_datasets"] = count_skipped(storage.resolve(settings.archive))
    if not counts.predicted():
        end_job(losses, strict=False)
        raise InputError(f"no image has a mask: {counts.describe_not_predicted()}; {out} has the reason of each")
    worst = ("--formats", "overlays", "--worst", "20", "--out", f"{out}-worst")
    export = command("export", "archive", "--predictions", out, *worst)
    studies = [storage.resolve(folder) for folder in settings.checkpoint if sources.is_study(folder)]
    reports = [command("report", "study", "--study", folder, "--predictions", out) for folder in studies]
    reports = reports or [command("report", "study", "--predictions", out)]
    end_job(losses, settings.strict, export, *reports[:1])


def _predict_remaining(
    settings: InferSettings, job: InferenceJob, schedule: Schedule, times: StageTimes
) -> StatusCounts:
    """Predict the remaining parts; return the counts of all images. Stops when too many images failed."""
    predicted = StatusCounts.empty()
    _check_failures(settings, schedule, schedule.kept)
    for counts in _predict(job, schedule, times):
        predicted = predicted.add(counts)
        _check_failures(settings, schedule, schedule.kept.add(predicted))
    return schedule.kept.add(predicted)


def _require_folders(settings: InferSettings, out: str) -> None:
    """Check that archive and checkpoint are set, and that the archive is not the output folder.

    Raises:
        SettingsError: one of these conditions is not met.

    """
    require_options(
        {
            "--archive FOLDER (images or prepared data)": settings.archive,
            "--checkpoint MODEL (an installed one such as lungs, or the folder of a run or study)": settings.checkpoint,
        }
    )
    if storage.resolve(settings.archive) == out:
        raise SettingsError(f"--out {settings.out} is the archive itself: pass another folder for the predictions")


def _create_job(settings: InferSettings, out: str, models: Sequence[Checkpoint]) -> InferenceJob:
    return InferenceJob(
        settings,
        out,
        tuple(model.folder for model in models),
        sources.model_name(models),
        ensemble_digest(models),
        models[0].preprocess,
        mean_thresholds(models, settings.threshold),
        PredictOptions("cpu", settings.precision, settings.tta, settings.model.custom),
        read_key(settings.patient_key),
    )


def _plan_parts(settings: InferSettings, job: InferenceJob, models: Sequence[Checkpoint]) -> Schedule:
    """Divide the images into parts. Plans that differ in anything that affects a row never share a folder."""
    logger.info("listing images")
    plan = {
        "plan_format": _PLAN_FORMAT,
        "archive": storage.resolve(settings.archive),
        "checkpoints": [model.folder for model in models],
        "model_name": job.model_name,
        "model": job.model_digest,
        "runs": [model.config["run"] for model in models],
        "epochs": [model.epoch for model in models],
        "preprocess": job.preprocess.model_dump(mode="json"),
        **planned_thresholds(job.thresholds),
        "precision": settings.precision,
        "tta": settings.tta,
        "postprocess": settings.postprocess.model_dump(mode="json"),
        "part_size": settings.part_size,
        **({"custom_network": source_digest(NETWORK, settings.model.custom)} if settings.model.custom else {}),
        "patients": pseudonym("", job.key) if job.key else "",  # differs between keys, but does not reveal them
    }
    plan_digest = storage.digest({name: value for name, value in plan.items() if name != "checkpoints"})
    stream = PlanStream(list_items(settings, job.preprocess, job.key), settings.part_size, plan_digest)
    schedule = Schedule(job.out, plan, stream, settings.part_size)
    logger.info(
        "%s%s in %s (%d already finished), model: %s",
        "" if schedule.is_complete else "so far ",
        counted(schedule.images, "image"),
        counted(schedule.parts, "part"),
        schedule.kept_parts,
        job.model_name,
    )
    return schedule


def _predict(job: InferenceJob, schedule: Schedule, times: StageTimes) -> Iterator[StatusCounts]:
    """Predict the remaining parts, a single image in this process. Yields the counts of each part."""
    progress, started, done, failed, done_at_start = ProgressLine(logger), 0.0, 0, 0, 0
    for row in _results(job, schedule, times):
        part = TaskResult.from_json(row["result"]).unwrap()
        times.add(part["images"], part["times"])
        counts = StatusCounts.from_json(part["counts"])
        done, failed = done + counts.statuses.total(), failed + counts.not_predicted()
        kept, images = schedule.kept.statuses.total(), schedule.images
        speed = ""
        if started:
            rate = (done - done_at_start) / max(time.monotonic() - started, 1e-9)
            speed = f", {rate:.1f} images/s, {(images - kept - done) / rate:.0f} s left"
        else:  # the time to start up says nothing about the time that is left
            started, done_at_start = time.monotonic(), done
        without = failed + schedule.kept.not_predicted()
        text = f", {without} without a mask" if without else ""
        total = f"{'' if schedule.is_complete else 'at least '}{counted(images, 'image')}"
        progress.update(f"{kept + done} of {total}{speed}{text}", (kept + done) / images)
        yield counts


def _results(job: InferenceJob, schedule: Schedule, times: StageTimes) -> Iterator[dict[str, Any]]:
    """Predict one window of parts after the other; yield the result of each part."""
    for window in schedule.windows():
        rows = [{"number": part.number, "items": part.items, "digest": part.digest} for part in window]
        is_single = schedule.is_complete and schedule.images == 1
        run_locally = is_single and job.settings.device != "gpu"
        yield from predict_locally(job, rows, few_images=True) if run_locally else _predict_on_cluster(job, rows, times)


def predict_locally(
    job: InferenceJob, rows: Sequence[dict[str, Any]], few_images: bool = False
) -> Iterator[dict[str, Any]]:
    """Process parts as `predict_on_cluster` does, in this process, without Ray. few_images: see `choose_backend`."""
    require_fp16_device(job.settings.precision, False, "--precision")
    predict = PredictPart(with_backend(job, "cpu", few_images))
    for row in rows:
        opened = open_part(pa.Table.from_pylist([row]), job)
        yield from finish_part(predict(opened), job).to_pylist()


def _predict_on_cluster(
    job: InferenceJob, rows: Sequence[dict[str, Any]], times: StageTimes
) -> Iterator[dict[str, Any]]:
    # Imported here: a single image is predicted without Ray.
    from lungseg.pipelines.infer_on_cluster import predict_on_cluster

    # Ray logs a harmless error about how Ray Data starts its actors (ray issue 53727). Real errors are raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    yield from predict_on_cluster(job, rows, times)


def _check_failures(settings: InferSettings, schedule: Schedule, counts: StatusCounts) -> None:
    """Stop if more images have no mask than --max-failed allows; a percentage needs the number of all images.

    Raises:
        InputError: too many images have no mask.

    """
    if settings.max_failed.endswith("%") and not schedule.is_complete:
        return
    allowed = settings.allowed_failures(schedule.images)
    if counts.lost_images() > allowed:
        raise InputError(
            f"{counts.lost_images()} of {counted(counts.statuses.total(), 'image')} so far have no mask "
            f"({counts.describe_not_predicted()}), --max-failed {settings.max_failed} allows {allowed} of "
            f"{schedule.images}; first: {'; '.join(counts.examples)}: fix or remove these files, or allow more "
            "failures; finished parts are kept"
        )


def _require_all(out: str, schedule: Schedule, counts: StatusCounts) -> None:
    """Check that every image has a row.

    Raises:
        InputError: rows are missing, or there are too many.

    """
    part_count, rows = len(parts.part_files(out)), counts.statuses.total()
    if rows != schedule.images or part_count != schedule.parts:
        raise InputError(
            f"{out} has {counted(rows, 'row')} in {counted(part_count, 'part')}, expected "
            f"{counted(schedule.images, 'row')} in "
            f"{counted(schedule.parts, 'part')}: another process wrote there; delete the folder and run again"
        )
