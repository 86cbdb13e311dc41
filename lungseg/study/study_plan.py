"""The runs of a study: planned, named, checked, and kept free of duplicates across the split."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lungseg.config import Protocol, TrainSettings
from lungseg.dataset import fold_table, folds
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicate_audit import linked_images
from lungseg.dataset.duplicates import count_duplicates, describe_duplicates
from lungseg.errors import SettingsError
from lungseg.training.run import name_run
from lungseg.training.study_data import require_enough_images

logger = logging.getLogger(__name__)

_PROTOCOLS: tuple[Protocol, ...] = ("pooled", "source-to-source", "all", "leave-one-dataset-out")


def plan_runs(settings: TrainSettings, data: Sequence[PreparedDataset]) -> list[folds.RunPlan]:
    """Return the runs that the settings select.

    Raises:
        SettingsError: no run trains on a dataset of --train-on alone.

    """
    plans = _plans(settings, data, settings.protocols, settings.only_folds, settings.training_seeds)
    sources = [plan.train_on[0] for plan in plans if plan.protocol == "source-to-source"]
    unknown = [name for name in settings.train_on if name not in sources]
    if unknown:
        expected = ", ".join(dict.fromkeys(sources)) or "none: it requires --protocols source-to-source"
        raise SettingsError(f"--train-on {unknown[0]}: datasets that a run trains on alone: {expected}")
    return [
        plan
        for plan in plans
        if plan.protocol != "source-to-source" or not settings.train_on or plan.train_on[0] in settings.train_on
    ]


def _plans(
    settings: TrainSettings,
    data: Sequence[PreparedDataset],
    protocols: Sequence[Protocol],
    only_folds: Sequence[int],
    seeds: Sequence[int],
) -> list[folds.RunPlan]:
    names = [dataset.name for dataset in data]
    split_seed, validates = settings.split_seed, settings.validates
    plans = folds.plan_study(protocols, names, settings.folds, only_folds, split_seed, validates)
    return [replace(plan, seed=seed) for seed in seeds for plan in plans]


def settings_of_run(settings: TrainSettings, plan: folds.RunPlan) -> TrainSettings:
    """Return the settings of one run: its own seed instead of the seeds of the study."""
    return settings.model_copy(update={"seed": plan.seed, "seeds": ()})


def name_plans(
    settings: TrainSettings, plans: Sequence[folds.RunPlan], data: list[PreparedDataset]
) -> dict[str, folds.RunPlan]:
    """Return the plans by run name."""
    return {name_run(settings_of_run(settings, plan), plan, data): plan for plan in plans}


def matching_runs(
    settings: TrainSettings, data: list[PreparedDataset], earlier_seeds: Iterable[int] = ()
) -> frozenset[str]:
    """Return the names of all runs that these settings and data allow, for every protocol, fold and seed.

    earlier_seeds: seeds that earlier commands trained this study with.
    """
    protocols = _PROTOCOLS if len(data) > 1 else _PROTOCOLS[:3]
    seeds = sorted({*settings.training_seeds, *earlier_seeds})
    return frozenset(name_plans(settings, _plans(settings, data, protocols, (), seeds), data))


def require_feasible(
    settings: TrainSettings,
    data: Sequence[PreparedDataset],
    plans: Sequence[folds.RunPlan],
    linked: Sequence[folds.Link] = (),
) -> list[int]:
    """Check every run before the first one starts; return the number of training images of each.

    Raises:
        SettingsError: the batches cannot be divided among the workers, a dataset has fewer groups of images than folds,
            or a run has too few images for its workers.

    """
    if problem := settings.batch_problem():
        raise SettingsError(problem)
    rows = [row for dataset in data for row in dataset.index.to_pylist()]
    groups = folds.group_rows(rows, linked)
    if settings.folds_from:
        fold_table.require_whole_groups(rows, groups, settings.folds_from)
    for name in dict.fromkeys(name for plan in plans for name in plan.train_on):
        own_groups = {group for row, group in zip(rows, groups, strict=True) if row["dataset"] == name}
        if len(own_groups) < settings.folds:
            raise SettingsError(
                f"--folds {settings.folds}: {name} has {len(own_groups)} groups of images (one per patient), but each "
                f"fold needs one: lower --folds, or leave {name} out of --data"
            )
    splits = [folds.split(rows, plan, linked) for plan in plans]
    for plan, split in zip(plans, splits, strict=True):
        require_enough_images(split, plan.name, settings.planned_world_size, settings.min_images_per_rank)
    return [len(split.train) for split in splits]


def write_folds(
    study: str, settings: TrainSettings, data: Sequence[PreparedDataset], linked: Sequence[folds.Link]
) -> None:
    """Write the fold of each image into the study's folder: folds.csv, and splits_final.json of each dataset."""
    rows = [row for dataset in data for row in dataset.index.to_pylist()]
    groups = folds.group_rows(rows, linked)
    assigned = folds.assign_folds(rows, groups, settings.folds, settings.split_seed)
    fold_table.write_fold_files(study, rows, assigned)


def find_linked_images(study: str, data: Sequence[PreparedDataset]) -> tuple[folds.Link, ...]:
    """Return the pairs of images that must be in one fold; audit the data unless that was done before."""
    pairs = linked_images(data, study)
    logger.info("audit: %s", describe_duplicates(count_duplicates(pairs), study))
    return tuple((pair["first"], pair["second"]) for pair in pairs)
