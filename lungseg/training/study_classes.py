"""The classes of a study and of each of its runs, joined from its datasets."""

from collections.abc import Sequence

from lungseg.config import TrainSettings
from lungseg.config.class_names import LUNGS, similar_names, without_partner
from lungseg.dataset.catalog import PreparedDataset
from lungseg.dataset.masked_rows import masked
from lungseg.errors import InputError, SettingsError


def has_masks(dataset: PreparedDataset) -> bool:
    """Return whether a sample of a dataset has a mask."""
    return bool(masked(dataset.index).any())


def study_classes(data: Sequence[PreparedDataset]) -> tuple[str, ...]:
    """Return the classes of all datasets with masks, in the order in which these first name them.

    Raises:
        InputError: the datasets name one class in two ways, or none of them annotates a class.

    """
    data = [dataset for dataset in data if has_masks(dataset)]
    classes = tuple(dict.fromkeys(name for dataset in data for name in dataset.preprocess.classes))
    if similar := similar_names(classes):
        places = [next(item for item in data if name in item.preprocess.classes) for name in similar]
        raise _differing_names(places, [(name,) for name in similar])
    lungs = {tuple(name for name in LUNGS if name in item.preprocess.classes): item for item in reversed(data)}
    if len(ways := [way for way in lungs if way]) > 1:
        raise _differing_names([lungs[way] for way in ways], ways)
    annotated = {name for dataset in data for name in dataset.annotated}
    unknown = [name for name in classes if name not in annotated]
    if unknown:
        raise InputError(
            f"{', '.join(item.folder for item in data)}: no image has a mask of {', '.join(unknown)}: prepare without "
            "this class in --preprocess.classes, or add masks; data of several classes from an earlier version has to "
            "be prepared again"
        )
    return classes


def describe_classes(data: Sequence[PreparedDataset]) -> str:
    """Say which datasets have masks of which classes, as `right_lung, left_lung in a, b; heart in a`."""
    places: dict[tuple[str, ...], list[str]] = {}
    data = [dataset for dataset in data if has_masks(dataset)]
    for name in study_classes(data):
        places.setdefault(tuple(item.name for item in data if name in item.annotated), []).append(name)
    return "; ".join(f"{', '.join(names)} in {', '.join(datasets)}" for datasets, names in places.items())


def classes_of_run(data: Sequence[PreparedDataset], train_on: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a study that the training datasets of a run annotate; it cannot learn the others."""
    known = {name for dataset in data if dataset.name in train_on for name in dataset.annotated}
    return tuple(name for name in study_classes(data) if name in known)


def require_usable_classes(settings: TrainSettings, data: Sequence[PreparedDataset], classes: Sequence[str]) -> None:
    """Check that the settings of a run fit its classes.

    Raises:
        SettingsError: a flip would turn a class into one that the run does not have, or softmax is asked for one class
            or for classes that overlap.

    """
    missing = without_partner(classes)
    if settings.augment.flip and missing:
        raise SettingsError(
            f"--augment.flip {settings.augment.flip}: a flip exchanges left and right, but {missing[0]} has no partner "
            f"among the classes {', '.join(classes)}: pass --augment.flip 0, or prepare with both sides"
        )
    if settings.model.activation != "softmax":
        return
    if len(classes) == 1:
        raise SettingsError("--model.activation softmax needs several classes: leave it out")
    for dataset in data:
        for first, second in dataset.overlaps:
            if first in classes and second in classes:
                raise SettingsError(
                    f"--model.activation softmax: {first} and {second} overlap in {dataset.folder}, but with softmax a "
                    "pixel has one class at most: pass --model.activation sigmoid"
                )


def _differing_names(places: Sequence[PreparedDataset], names: Sequence[Sequence[str]]) -> InputError:
    first, second = (", ".join(own) for own in names[:2])
    return InputError(
        f"{places[0].folder} has the class {first}, {places[1].folder} has {second}, which name the same: prepare both "
        "with the same --preprocess.classes"
    )
