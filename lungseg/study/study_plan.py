"""The runs of a study: planned, named, checked, and kept free of duplicates across the split."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow.compute as pc

from lungseg.config import Protocol, TrainSettings
from lungseg.dataset import fold_table, folds
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.duplicate_audit import linked_images
from lungseg.dataset.duplicates import count_duplicates, describe_duplicates
from lungseg.dataset.masked_rows import masked_rows
from lungseg.dataset.training_index import TrainingIndex, build_index
from lungseg.errors import SettingsError
from lungseg.training.balanced_epochs import images_per_epoch
from lungseg.training.run import name_run
from lungseg.training.study_classes import classes_of_run, has_masks, require_usable_classes, study_classes
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
    names = [dataset.name for dataset in data if has_masks(dataset)]
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
    protocols = _PROTOCOLS if sum(map(has_masks, data)) > 1 else _PROTOCOLS[:3]
    seeds = sorted({*settings.training_seeds, *earlier_seeds})
    return frozenset(name_plans(settings, _plans(settings, data, protocols, (), seeds), data))


def index_of(
    settings: TrainSettings, data: Sequence[PreparedDataset], linked: Sequence[folds.Link] = ()
) -> TrainingIndex:
    """Assign all images of a study to groups and folds, which are the same for all its runs.

    Raises:
        SettingsError: a fold of the archive does not exist.

    """
    return build_index(data, linked, settings.folds, settings.split_seed)


def require_feasible(settings: TrainSettings, index: TrainingIndex, plans: Sequence[folds.RunPlan]) -> list[int]:
    """Check every run before the first one starts; return the number of training images of an epoch of each.

    Raises:
        SettingsError: the batches cannot be divided among the workers, a dataset has fewer groups of images than folds,
            or a run has too few images for its workers, or its classes do not fit the settings.

    """
    if problem := settings.batch_problem():
        raise SettingsError(problem)
    if settings.folds_from:
        fold_table.require_whole_groups(index.rows, settings.folds_from)
    groups_of = {data.name: len(pc.unique(masked_rows(data.index)[folds.GROUP])) for data in index.datasets}
    for name in dict.fromkeys(name for plan in plans for name in plan.train_on):
        if groups_of[name] < settings.folds:
            raise SettingsError(
                f"--folds {settings.folds}: {name} has {groups_of[name]} groups of images (one per patient), but each "
                f"fold needs one: lower --folds, or leave {name} out of --data"
            )
    if settings.balance_datasets and all(len(plan.train_on) == 1 for plan in plans):
        raise SettingsError(
            "--balance-datasets: every run trains on one dataset: leave it out, or train on several (--protocols "
            "pooled)"
        )
    sizes, all_classes = [], study_classes(index.datasets)
    for plan in plans:
        classes = classes_of_run(index.datasets, plan.train_on)
        require_usable_classes(settings, index.datasets, classes)
        if settings.model.custom and classes != all_classes:
            raise SettingsError(
                f"--model.custom {settings.model.custom}: {plan.name} learns {', '.join(classes)} only, and a network "
                "of your own has the same classes in every run: leave out this protocol"
            )
        split = folds.split(index.rows, plan)
        images = images_per_epoch(settings, index.rows, split.train)
        require_enough_images(images, plan.name, settings.planned_world_size, settings.min_images_per_rank)
        sizes.append(images)
    return sizes


def find_linked_images(study: str, data: Sequence[PreparedDataset]) -> tuple[folds.Link, ...]:
    """Return the pairs of images that must be in one fold; audit the data unless that was done before."""
    pairs = linked_images(data, study)
    logger.info("audit: %s", describe_duplicates(count_duplicates(pairs), study))
    return tuple((pair["first"], pair["second"]) for pair in pairs)
