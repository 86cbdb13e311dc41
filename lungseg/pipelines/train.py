"""Train a study: its runs planned, refused or placed, several at once where the cluster has room, and added up."""

import contextlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Generator, Sequence

from lungseg import storage
from lungseg.cluster.connection import connect
from lungseg.cluster.resources import WorkerAllocation, allocate_runs, initial_workers, require_memory, workers_per_run
from lungseg.cluster.shared_storage import require_shared_storage
from lungseg.config import PreprocessSettings, Protocol, TrainSettings
from lungseg.dataset import catalog, duplicates, folds
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.errors import LungsegError, SettingsError
from lungseg.ingest import record_checks, sources
from lungseg.model import network
from lungseg.pipelines import train_run
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.progress import ProgressLine, SharedProgressLine
from lungseg.study import cross_dataset
from lungseg.study.study_files import StudyRecord
from lungseg.training import tracking
from lungseg.training.run import Run, name_run
from lungseg.training.study_data import open_training_data, require_enough_images
from lungseg.training.train_step import check_compute_settings

logger = logging.getLogger(__name__)

_PHANTOM_SIZE = 128
_LIBRARIES_MIB = 800  # torch, the encoder and Adam's two moments of it, on a CPU
_PROTOCOLS: tuple[Protocol, ...] = ("pooled", "source-to-source", "leave-one-dataset-out")


def run(settings: TrainSettings) -> None:
    """Train and test every run of the study; finished ones are passed over, interrupted ones go on.

    A run that fails does not stop the others.

    Raises:
        LungsegError: data or settings cannot be used, the cluster is too small, or a run failed.

    """
    settings = _with_resolved_weights(settings)
    study = storage.join(storage.resolve(settings.out), settings.study)
    folders = catalog.find_datasets(_data(settings))
    data = open_training_data(folders)
    plans = _asked_for(_plan(settings, data, settings.protocols, settings.only_folds), settings.train_on)
    settings = _with_workers(settings, study, len(plans))
    _check(settings, data, plans, ())
    named = {name_run(settings, plan, data): plan for plan in plans}
    record = StudyRecord(study, settings, named, _alike(settings, data))
    images = sum(part.index.num_rows for part in data)
    logger.info("study %s: %d runs on %d images in %d data sets", study, len(named), images, len(data))
    unfinished = not all(map(record.is_finished, named))
    # By all runs, not by those left: so a run that goes on has as many threads as it began with, and is as fast.
    at_once, placed = _place(settings, len(named), study, folders) if unfinished else (0, WorkerAllocation(0, 0, 0))
    linked = _linked(study, data)
    _check(settings, data, plans, linked)
    runs = [
        Run(settings, plan, tuple(folders), name, storage.join(study, name), linked) for name, plan in named.items()
    ]
    left = [one for one in runs if not record.is_finished(one.name)]
    record.write_states()
    failures = _train_all(left, at_once, placed, record)
    found = record.write()
    for one in runs:
        if record.is_finished(one.name):
            _tell(record, one.name)
    cross_dataset.print_results(found)
    if found.cells and (left or not storage.exists(storage.join(study, "wandb"))):
        tracking.log_study_table(settings.wandb, study, cross_dataset.dice_table(found))
    _judge(record, failures)


def _with_resolved_weights(settings: TrainSettings) -> TrainSettings:
    """Name a file of weights by its whole path: Ray Train's workers stand in another folder."""
    weights = settings.model.weights
    if weights in ("imagenet", "none"):
        return settings
    model = settings.model.model_copy(update={"weights": storage.resolve(weights)})
    return settings.model_copy(update={"model": model})


def _with_workers(settings: TrainSettings, study: str, runs: int) -> TrainSettings:
    """Put a number in the place of `auto`: what the study began with, else what the cluster has for each run."""
    if settings.workers_per_run != "auto":
        return settings
    path = storage.join(study, "study.json")
    found = storage.read_json(path)["settings"]["workers_per_run"] if storage.exists(path) else 0
    if not found:
        connect()
        found = workers_per_run(runs, settings.device)
        logger.info("--workers-per-run auto: %d", found)
    return settings.model_copy(update={"workers_per_run": found})


def _plan(
    settings: TrainSettings,
    data: Sequence[catalog.PreparedDataset],
    protocols: Sequence[Protocol],
    only: Sequence[int],
) -> list[folds.RunPlan]:
    names = [part.name for part in data]
    return folds.plan_study(protocols, names, settings.folds, only, settings.seed, settings.validates)


def _asked_for(plans: Sequence[folds.RunPlan], train_on: Sequence[str]) -> list[folds.RunPlan]:
    """Leave out the source-to-source runs that train on other data sets than those asked for.

    Raises:
        SettingsError: one that is asked for is trained on by none.

    """
    single = [plan.train_on[0] for plan in plans if plan.protocol == "source-to-source"]
    wrong = [name for name in train_on if name not in single]
    if wrong:
        there = ", ".join(dict.fromkeys(single)) or "none: it is for --protocols source-to-source"
        raise SettingsError(f"--train-on {wrong[0]}: data sets that a run trains on alone: {there}")
    return [
        plan for plan in plans if plan.protocol != "source-to-source" or not train_on or plan.train_on[0] in train_on
    ]


def _alike(settings: TrainSettings, data: list[catalog.PreparedDataset]) -> frozenset[str]:
    """Name every run that these settings and data can have, whatever its protocol and fold."""
    protocols = _PROTOCOLS if len(data) > 1 else _PROTOCOLS[:2]
    return frozenset(name_run(settings, plan, data) for plan in _plan(settings, data, protocols, ()))


def _check(
    settings: TrainSettings,
    data: Sequence[catalog.PreparedDataset],
    plans: Sequence[folds.RunPlan],
    linked: Sequence[folds.Link],
) -> None:
    """Refuse a run that cannot be, before any of them begins.

    Raises:
        SettingsError: more folds than groups of images to deal, or too few images for the workers.

    """
    rows = [row for part in data for row in part.index.to_pylist()]
    groups = folds.group_rows(rows, linked)
    for name in dict.fromkeys(name for plan in plans for name in plan.train_on):
        own = {group for row, group in zip(rows, groups, strict=True) if row["dataset"] == name}
        if len(own) < settings.folds:
            raise SettingsError(
                f"--folds {settings.folds}: {name} has {len(own)} groups of images (one a patient) to deal into folds, "
                f"one a fold is needed: lower --folds, or leave {name} out of --data"
            )
    for plan in plans:
        parts = folds.split(rows, plan, linked)
        require_enough_images(parts, plan.name, settings.planned_world_size, settings.min_batch_size)


def _linked(study: str, data: Sequence[catalog.PreparedDataset]) -> tuple[folds.Link, ...]:
    """Audit the data, or read what an earlier command found in the same; list the pairs that must not be parted."""
    path = storage.join(study, "duplicates.parquet")
    phashes = [part.index.column("phash").to_pylist() for part in data]
    made_of = storage.digest([[part.digest for part in data], phashes])
    found = storage.read_table(path) if storage.exists(path) else None
    if found is None or found.schema.metadata.get(b"lungseg.audited") != made_of.encode():
        logger.info("audit: looking for duplicates among %d images", sum(part.index.num_rows for part in data))
        found = duplicates.pairs_to_table(audit_datasets(data, show=ProgressLine(logger).update))
        found = found.replace_schema_metadata({**found.schema.metadata, "lungseg.audited": made_of})
        storage.write_table(path, found)
    pairs = found.to_pylist()
    kinds = Counter(pair["kind"] for pair in pairs)
    patients = len({pair["first"] for pair in pairs if pair["kind"] == "same_patient"})
    counts = f"{kinds['exact']} exact, {kinds['near']} near duplicate pairs, {patients} patients with several images"
    logger.info("audit: %s; they stay in one fold: %s", counts, path)
    return tuple((pair["first"], pair["second"]) for pair in pairs)


def _data(settings: TrainSettings) -> list[str]:
    """Resolve the named data; without any, draw phantoms and prepare them, in seconds and in this process."""
    if settings.data:
        return [storage.resolve(path) for path in settings.data]
    if not settings.phantoms:
        raise SettingsError("no data named: pass --data FOLDER (prepared by jobs/prepare.py)")
    out = storage.join(storage.resolve(settings.out), "phantom-data")
    records = record_checks.reject_duplicate_ids(sources.discover(draw_phantoms(out, settings.phantoms)))
    dataset_writer.write_datasets(
        plan_shards(records, out, PreprocessSettings(size=_PHANTOM_SIZE), images_per_shard=64)
    )
    return [out]


def _place(settings: TrainSettings, runs: int, study: str, folders: Sequence[str]) -> tuple[int, WorkerAllocation]:
    """Join the cluster, and refuse what it cannot do; say how many runs train at once, and what a worker gets."""
    with network.skip_weight_init():
        network.build_network(
            settings.model
        )  # tells of a wrong encoder and of missing weights before any worker starts
    connect()
    workers = initial_workers(
        settings.min_workers or settings.planned_world_size, settings.planned_world_size, settings.device
    )
    at_once, placed = allocate_runs(workers, settings.device, runs, settings.runs_at_once)
    # After an autoscaler has brought the nodes that it was asked for.
    require_shared_storage(study, [storage.join(folder, "dataset.json") for folder in folders])
    check_compute_settings(settings.compute, placed.workers if placed.gpus else 0)
    require_memory(placed, at_once * placed.workers, _memory_mib(settings, folders))
    return at_once, placed


def _memory_mib(settings: TrainSettings, folders: Sequence[str]) -> int:
    """Memory that a worker is known to need: its libraries, and the decoded samples that it keeps."""
    opened = open_training_data(folders)
    pixels: int = sum(part.index.num_rows * part.preprocess.size**2 for part in opened)
    return _LIBRARIES_MIB + min(settings.loader.cache_mib, 2 * pixels // 2**20)


def _train_all(left: Sequence[Run], at_once: int, placed: WorkerAllocation, record: StudyRecord) -> list[Exception]:
    """Train the runs, some at a time; the study's files follow each that ends. Return the failures."""
    line, failures = SharedProgressLine(logger), []
    if len(left) > 1:
        logger.info("%d runs to train, %d at once", len(left), at_once)
    with contextlib.closing(_in_threads(left, at_once, placed, line)) as ended:
        for one, error in ended:
            if error is not None:
                failures.append(error)
                bug = not isinstance(error, LungsegError)
                record.failures[one.name] = f"{type(error).__name__}: {error}" if bug else str(error)
                line.log(one.name, f"failed: {record.failures[one.name]}", logging.ERROR)
                if bug:
                    logger.error("%s: no failure that is known of", one.name, exc_info=error)
            try:
                record.write_states()
            except (LungsegError, OSError) as unwritten:  # the other runs go on, and the end writes again
                line.log(one.name, f"the study's files are not written now ({unwritten})", logging.WARNING)
    return failures


def _in_threads(
    left: Sequence[Run], at_once: int, placed: WorkerAllocation, line: SharedProgressLine
) -> Generator[tuple[Run, Exception | None], None, None]:
    """Train runs in threads, and tell of each as it ends.

    The threads are daemons and the main one is none of them: so Ctrl-C ends the job at once, and with it its workers,
    where an executor would wait for the runs' end, and Ray Train on the main thread would end the job with status 0.
    """
    todo: queue.SimpleQueue[Run] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Run, Exception | None]] = queue.SimpleQueue()
    for one in left:
        todo.put(one)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                done.put(_outcome(todo.get_nowait(), placed, line))

    for _ in range(at_once):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in left:
            yield done.get()
    finally:
        line.closed.set()
        with contextlib.suppress(queue.Empty):  # where the job ends early, no other run begins
            while True:
                todo.get_nowait()


def _outcome(one: Run, placed: WorkerAllocation, line: SharedProgressLine) -> tuple[Run, Exception | None]:
    try:
        train_run.train(one, placed, line)
    except Exception as error:  # the main thread tells a bug from a failure, and logs it whole
        return one, error
    return one, None


def _tell(record: StudyRecord, name: str) -> None:
    for tested in record.read_run_summary(name)["tested"]:
        figures = ", ".join(f"{title} {tested[key]:.4f}" for title, key in (("Dice", "dice"), ("IoU", "iou")))
        logger.info("%s: %s %s, %d images: %s", name, tested["role"], tested["dataset"], tested["images"], figures)


def _judge(record: StudyRecord, failures: Sequence[Exception]) -> None:
    """Give an account of the runs where some failed.

    Raises:
        LungsegError: some did; a SettingsError where all of these failed over settings.

    """
    if not failures:
        return
    done = sum(record.is_finished(name) for name in record.plans)
    reasons = "; ".join(f"{name} failed: {reason}" for name, reason in record.failures.items())
    settings = all(isinstance(failure, SettingsError) for failure in failures)
    raise (SettingsError if settings else LungsegError)(
        f"{done} of {len(record.plans)} runs finished; {reasons}; the same command goes on"
    )
