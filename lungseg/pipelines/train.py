"""Train a study: plan its runs, place them on the cluster, train several at once, and summarise the results."""

import logging
from collections.abc import Sequence

from lungseg import storage
from lungseg.arrays import Row
from lungseg.cluster.resources import WorkerAllocation
from lungseg.config import PreprocessSettings, TrainSettings
from lungseg.config.class_names import LUNG
from lungseg.dataset import catalog, fold_table
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.training_index import write_index
from lungseg.errors import LungsegError, SettingsError
from lungseg.ingest import record_checks, sources
from lungseg.job_end import command, end_job
from lungseg.model.sources import resolve as resolve_model
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.pipelines.train_placement import allocate, settings_for_cluster, settings_of_study
from lungseg.pipelines.train_pool import train_all
from lungseg.plurals import counted
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.provenance import command_line, git_state
from lungseg.study import earlier_runs, result_text, study_files, study_plan
from lungseg.study.study_files import StudyRecord
from lungseg.training import tracking
from lungseg.training.batch_summary import describe_batches
from lungseg.training.custom_code_check import check_custom_code
from lungseg.training.distillation import check_teacher
from lungseg.training.run import Run
from lungseg.training.study_classes import describe_classes, study_classes
from lungseg.training.study_data import open_training_data

logger = logging.getLogger(__name__)

_PHANTOM_SIZE = 128


def run(settings: TrainSettings) -> None:
    """Train and test every run of the study; skip finished runs and resume interrupted ones.

    A run that fails does not stop the others.

    Raises:
        LungsegError: data or settings cannot be used, the cluster is too small, or a run failed.

    """
    settings = _with_absolute_paths(settings)
    study = storage.join(storage.resolve(settings.out), settings.study)
    paths = _data_folders(settings)
    folders = catalog.find_datasets(paths)
    data = open_training_data(folders, settings)
    check_custom_code(settings, data[0].preprocess.size, len(study_classes(data)))
    if settings.teacher:
        check_teacher(settings, data)
    record = _plan_study(settings, study, data, folders)
    settings = record.settings
    _handle_finished(record, {dataset.name: dataset.digest for dataset in data})
    at_once, allocation = 0, WorkerAllocation(0, 0, 0)
    if not all(map(record.is_finished, record.plans)):
        at_once, allocation = allocate(settings, len(record.plans), study, data)
    index = study_plan.index_of(settings, data, study_plan.find_linked_images(study, data))
    del data  # ranks need less of it; the index has that
    training_images = study_plan.require_feasible(settings, index, list(record.plans.values()))
    index_path = storage.join(study, "index.arrow")
    unfinished = _unfinished_runs(record, index_path)
    if unfinished:
        logger.info("%s", describe_batches(settings, training_images))
    record.write_states()
    fold_table.write_fold_files(study, index.rows)
    if unfinished:
        write_index(index_path, index)
    del index
    failures = train_all(unfinished, at_once, allocation, record)
    _show_results(record, trained=bool(unfinished))
    if sync := tracking.sync_command(study, record.kept_aside()):
        logger.info("W&B kept its runs offline in these folders; to upload them: %s", sync)
    _raise_failures(record, failures)
    custom_network = ("--model.custom", settings.model.custom) if settings.model.custom else ()
    end_job(
        {"skipped_datasets": sum(len(catalog.list_unfinished(path)) for path in paths)},
        settings.strict,
        command("infer", "archive", "--archive", "FOLDER", "--checkpoint", study, *custom_network),
        command("report", "study", "--study", study),
    )


def _with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """Make paths of weights, folds and teacher absolute, because Ray Train's workers have another working directory."""
    weights, folds_from = settings.model.weights, settings.folds_from
    if weights not in ("imagenet", "none"):
        weights = storage.resolve(weights)
    model = settings.model.model_copy(update={"weights": weights})
    folds_from = storage.resolve(folds_from) if folds_from else ""
    teacher = resolve_model(settings.teacher) if settings.teacher else ""
    return settings.model_copy(update={"model": model, "folds_from": folds_from, "teacher": teacher})


def _data_folders(settings: TrainSettings) -> list[str]:
    """Return the folders of --data; without any, prepare phantoms in this process."""
    if settings.data:
        return [storage.resolve(path) for path in settings.data]
    if not settings.phantoms:
        raise SettingsError("no data named: pass --data FOLDER (prepared by lungseg prepare)")
    out = storage.join(storage.resolve(settings.out), "phantom-data")
    records = record_checks.reject_duplicate_ids(sources.discover(draw_phantoms(out, settings.phantoms)))
    dataset_writer.write_datasets(
        plan_shards(records, out, PreprocessSettings(size=_PHANTOM_SIZE), images_per_shard=64)
    )
    return [out]


def _plan_study(
    settings: TrainSettings, study: str, data: list[PreparedDataset], folders: Sequence[str]
) -> StudyRecord:
    """Plan the runs of this command, with the ranks, device and threads of the study or of the cluster."""
    plans = study_plan.plan_runs(settings, data)
    settings = settings_of_study(settings, study)
    if settings.workers_per_run != "auto":
        # Before the cluster starts.
        study_plan.require_feasible(settings, study_plan.index_of(settings, data), plans)
    settings = settings_for_cluster(settings, len(plans))
    named_plans = study_plan.name_plans(settings, plans, data)
    matching = study_plan.matching_runs(settings, data, study_files.earlier_seeds(study))
    images = sum(dataset.index.num_rows for dataset in data)
    sizes = counted(len(named_plans), "run"), counted(images, "image"), counted(len(data), "dataset")
    logger.info("study %s: %s on %s in %s", study, *sizes)
    if len(study_classes(data)) > 1 and len(data) > 1:
        logger.info("masks of %s", describe_classes(data))
    return StudyRecord(study, settings, named_plans, matching, tuple(folders))


def _unfinished_runs(record: StudyRecord, index: str) -> list[Run]:
    origin = {"command": command_line(), "git": git_state()}
    return [
        Run(
            study_plan.settings_of_run(record.settings, plan),
            plan,
            record.data,
            name,
            storage.join(record.folder, name),
            index=index,
            origin=origin,
        )
        for name, plan in record.plans.items()
        if not record.is_finished(name)
    ]


def _handle_finished(record: StudyRecord, data: dict[str, str]) -> None:
    """Log the finished runs and those kept aside; with --rerun, delete the runs of other code.

    data: digest of each dataset by name.
    """
    if record.settings.rerun:
        for name in earlier_runs.other_code(record.folder, list(record.plans)):
            logger.info("%s was trained with other code: training it again", name)
            storage.delete(storage.join(record.folder, name))
    earlier_runs.log_finished(record.folder, [name for name in record.plans if record.is_finished(name)])
    earlier_runs.log_kept_aside(record.folder, record.kept_aside(), record.settings, data)


def _show_results(record: StudyRecord, trained: bool) -> None:
    """Write the study's files, log each finished run, and print the cross-dataset table."""
    results = record.write()
    tested = [(name, row) for name in filter(record.is_finished, record.plans) for row in _tested(record, name)]
    several = len({row["class"] for _, row in tested}) > 1
    for name, row in tested:
        subject = f"{row['dataset']}, {row['class']}" if several else row["dataset"]
        metrics = f"Dice {row['dice']:.4f}, IoU {row['iou']:.4f}"
        logger.info("%s: %s %s, %s: %s", name, row["role"], subject, counted(row["images"], "image"), metrics)
    result_text.print_results(results)
    is_new = trained or tracking.is_sweep() or not storage.exists(storage.join(record.folder, "wandb"))
    if results.cells and is_new:
        tracking.log_study(
            record.settings.wandb,
            record.folder,
            result_text.dice_table(results),
            _mean_dice([row for _, row in tested]),
        )


def _tested(record: StudyRecord, name: str) -> list[Row]:
    """Return the means of a finished run; runs of earlier versions do not name their one class."""
    return [{"class": LUNG, **row} for row in record.read_run_summary(name)["tested"]]


def _mean_dice(tested: Sequence[Row]) -> dict[str, float]:
    """Return the mean Dice over the tested images of all runs, as `held_out_dice` and `cross_dice`.

    With several classes the mean over them, and that of each, as `held_out_dice_heart`.
    """
    means: dict[str, float] = {}
    classes = list(dict.fromkeys(row["class"] for row in tested))
    for role in sorted({row["role"] for row in tested}):
        by_class = {}
        for name in classes:
            rows = [row for row in tested if (row["role"], row["class"]) == (role, name)]
            if images := sum(row["images"] for row in rows):
                by_class[name] = sum(row["dice"] * row["images"] for row in rows) / images
        key = f"{role.replace('-', '_')}_dice"
        means[key] = sum(by_class.values()) / len(by_class)
        if len(classes) > 1:
            means |= {f"{key}_{name}": value for name, value in by_class.items()}
    return means


def _raise_failures(record: StudyRecord, failures: Sequence[Exception]) -> None:
    """Report the failed runs.

    Raises:
        LungsegError: runs failed; a SettingsError if settings caused every failure.

    """
    if not failures:
        return
    finished = sum(record.is_finished(name) for name in record.plans)
    reasons = "; ".join(f"{name} failed: {reason}" for name, reason in record.failures.items())
    error = SettingsError if all(isinstance(failure, SettingsError) for failure in failures) else LungsegError
    raise error(
        f"{finished} of {counted(len(record.plans), 'run')} finished; {reasons}; to continue, run the same command "
        "again"
    )
