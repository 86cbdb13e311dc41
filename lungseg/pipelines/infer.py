"""Segment an archive. The images are divided into parts; each part is one Parquet file, written atomically."""

import functools
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
from lungseg.inference import part_plan, recompute
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import MARKERS, InferenceJob, finish_part, open_part
from lungseg.inference.inputs import count_skipped, describe_reference, list_items
from lungseg.inference.items import PredictOptions
from lungseg.inference.model_selection import find_models, mean_threshold
from lungseg.inference.part_plan import PlannedPart
from lungseg.inference.ranking_files import log_most_doubtful, write_csv
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


@dataclass(frozen=True)
class _Schedule:
    """All parts of the plan; kept: counts of the finished ones; retried: numbers of those to predict again."""

    planned: Sequence[PlannedPart]
    kept: dict[int, StatusCounts]
    retried: frozenset[int]

    @property
    def kept_counts(self) -> StatusCounts:
        return functools.reduce(StatusCounts.add, self.kept.values(), StatusCounts.empty())

    @property
    def images(self) -> int:
        return sum(part.images for part in self.planned)

    @property
    def remaining(self) -> list[PlannedPart]:
        """Parts to predict. Retries come last: they may fail again."""
        remaining = [part for part in self.planned if part.number not in self.kept]
        return sorted(remaining, key=lambda part: part.number in self.retried)


@dataclass(frozen=True)
class Finished:
    """A finished inference: counts of all rows and of those of earlier runs, and the most doubtful rows."""

    counts: StatusCounts
    kept: StatusCounts
    most_doubtful: list[Row]


def run(settings: InferSettings) -> None:
    """Predict every image of an archive once. Parts of an earlier, interrupted run are kept.

    Raises:
        LungsegError: the archive or a checkpoint cannot be used, --out holds other predictions, too many images
            failed, or the cluster is too small.

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
    job = _create_job(settings, out, models)
    require_fp16_device(settings.precision, settings.device != "cpu", "--precision")
    schedule = _plan_parts(settings, job, models)
    began = time.monotonic()
    counts = _predict_remaining(settings, job, schedule, times)
    _require_all(out, schedule, counts)
    storage.delete(storage.join(out, MARKERS))
    storage.delete_unfinished(out)
    most_doubtful = write_csv(out)
    write_summary(job, counts, schedule.kept_counts, times, time.monotonic() - began)
    return Finished(counts, schedule.kept_counts, most_doubtful)


def _end(settings: InferSettings, out: str, counts: StatusCounts) -> None:
    """Log what was lost and the next command.

    Raises:
        LungsegError: something was lost, and the job is strict.

    """
    losses = lost_inputs(counts.statuses, ((*key, count) for key, count in counts.codes.items()))
    losses["skipped_datasets"] = count_skipped(storage.resolve(settings.archive))
    export = command("export", "archive", "--predictions", out, "--formats", "overlays", "--worst", "20")
    studies = [folder for folder in settings.checkpoint if sources.is_study(folder)]
    reports = [command("report", "study", "--study", folder, "--predictions", out) for folder in studies]
    reports = reports or [command("report", "study", "--predictions", out)]
    end_job(losses, settings.strict, *([export, *reports[:1]] if counts.predicted() else []))


def _predict_remaining(
    settings: InferSettings, job: InferenceJob, schedule: _Schedule, times: StageTimes
) -> StatusCounts:
    """Predict the remaining parts; return the counts of all images. Stops when too many images failed."""
    counts = schedule.kept_counts
    _check_failures(settings, schedule, counts)
    if schedule.remaining:
        part_plan.discard_outdated(job.out, schedule.remaining)
        for updated in _predict(job, schedule, times, counts):
            counts = updated
            _check_failures(settings, schedule, counts)
    return counts


def _require_folders(settings: InferSettings, out: str) -> None:
    """Check that archive and checkpoint are set, and that the archive is not the output folder.

    Raises:
        SettingsError: one of these conditions is not met.

    """
    require_options(
        {
            "--archive FOLDER (images or prepared data)": settings.archive,
            "--checkpoint FOLDER (a finished run or study)": settings.checkpoint,
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
        settings.threshold or mean_threshold(models),
        PredictOptions("cpu", settings.precision, settings.tta, settings.model.custom),
        read_key(settings.patient_key),
    )


def _plan_parts(settings: InferSettings, job: InferenceJob, models: Sequence[Checkpoint]) -> _Schedule:
    """Divide the images into parts. Plans that differ in anything that affects a row never share a folder."""
    logger.info("listing images")
    items = list_items(settings, job.preprocess, job.key)
    plan = {
        "archive": storage.resolve(settings.archive),
        "images": len(items),
        "checkpoints": [model.folder for model in models],
        "model_name": job.model_name,
        "model": job.model_digest,
        "runs": [model.config["run"] for model in models],
        "epochs": [model.epoch for model in models],
        "preprocess": job.preprocess.model_dump(mode="json"),
        "threshold": job.threshold,
        "precision": settings.precision,
        "tta": settings.tta,
        "postprocess": settings.postprocess.model_dump(mode="json"),
        "part_size": settings.part_size,
        **({"custom_network": source_digest(NETWORK, settings.model.custom)} if settings.model.custom else {}),
        "patients": pseudonym("", job.key) if job.key else "",  # differs between keys, but does not reveal them
    }
    plan_digest = storage.digest({name: value for name, value in plan.items() if name != "checkpoints"})
    starts = enumerate(range(0, len(items), settings.part_size))
    planned = [
        PlannedPart.of(number, items[start : start + settings.part_size], plan_digest) for number, start in starts
    ]
    digest = storage.digest([part.digest for part in planned])
    part_plan.claim(job.out, {**plan, "reference": describe_reference(items), "digest": digest})
    kept = part_plan.find_finished(job.out, planned)
    logger.info(
        "%s in %s (%d already finished), model: %s",
        counted(len(items), "image"),
        counted(len(planned), "part"),
        len(kept),
        job.model_name,
    )
    present = set(parts.part_files(job.out))
    with_file = {part.number for part in planned if parts.part_path(job.out, part.number) in present}
    return _Schedule(planned, kept, frozenset(with_file - kept.keys()))


def _predict(job: InferenceJob, schedule: _Schedule, times: StageTimes, counts: StatusCounts) -> Iterator[StatusCounts]:
    """Predict the remaining parts, a single image in this process. Yields the total counts after each part."""
    progress, started, done_at_start = ProgressLine(logger), 0.0, 0
    rows = [{"number": part.number, "items": part.items, "digest": part.digest} for part in schedule.remaining]
    run_locally = schedule.images == 1 and job.settings.device != "gpu"
    results = predict_locally(job, rows) if run_locally else _predict_on_cluster(job, rows, times)
    for row in results:
        part = TaskResult.from_json(row["result"]).unwrap()
        times.add(part["images"], part["times"])
        counts = counts.add(StatusCounts.from_json(part["counts"]))
        done = counts.statuses.total()
        speed = ""
        if started:
            rate = (done - done_at_start) / max(time.monotonic() - started, 1e-9)
            speed = f", {rate:.1f} images/s, {(schedule.images - done) / rate:.0f} s left"
        else:  # the time to start up says nothing about the time that is left
            started, done_at_start = time.monotonic(), done
        failed = f", {counts.not_predicted()} without a mask" if counts.not_predicted() else ""
        progress.update(f"{done} of {counted(schedule.images, 'image')}{speed}{failed}", done / schedule.images)
        yield counts


def predict_locally(job: InferenceJob, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Process parts as `predict_on_cluster` does, in this process, without Ray."""
    require_fp16_device(job.settings.precision, False, "--precision")
    predict = PredictPart(job)
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


def _check_failures(settings: InferSettings, schedule: _Schedule, counts: StatusCounts) -> None:
    """Stop if more images have no mask than --max-failed allows.

    Raises:
        InputError: too many images have no mask.

    """
    allowed = settings.allowed_failures(schedule.images)
    if counts.lost_images() > allowed:
        raise InputError(
            f"{counts.lost_images()} of {counted(counts.statuses.total(), 'image')} so far have no mask "
            f"({counts.describe_not_predicted()}), --max-failed {settings.max_failed} allows {allowed} of "
            f"{schedule.images}; first: {'; '.join(counts.examples)}: fix or remove these files, or allow more "
            "failures; finished parts are kept"
        )


def _require_all(out: str, schedule: _Schedule, counts: StatusCounts) -> None:
    """Check that every image has a row.

    Raises:
        InputError: rows are missing, or there are too many.

    """
    part_count, rows = len(parts.part_files(out)), counts.statuses.total()
    if rows != schedule.images or part_count != len(schedule.planned):
        raise InputError(
            f"{out} has {counted(rows, 'row')} in {counted(part_count, 'part')}, expected "
            f"{counted(schedule.images, 'row')} in "
            f"{counted(len(schedule.planned), 'part')}: another process wrote there; delete the folder and run again"
        )
