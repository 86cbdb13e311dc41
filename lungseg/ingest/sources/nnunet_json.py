"""Read dataset.json and splits_final.json of nnU-Net: the grey values of the lungs, and the folds."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lungseg import storage
from lungseg.config.class_names import LUNG, LUNG_SIDES, ONE_CLASS, requested_class
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import stem
from lungseg.ingest.label_notes import IGNORED, LESION
from lungseg.ingest.sources.folder_kinds import label_class

logger = logging.getLogger(__name__)


class Label(NamedTuple):
    """A class of lungseg, or LESION or IGNORED, and the grey values that mean it in a label file, such as `1,2`."""

    kind: str
    values: str


def read_labels(path: str, classes: Sequence[str] = ONE_CLASS) -> list[Label]:
    """Return the classes that `labels` of dataset.json names, lungs first; none if no label is lung or requested.

    Left and right lung are joined. Lesions are part of the lungs, and a label LESION, too. The label `ignore` and
    unknown names are a label IGNORED. Other known structures are left out. All are logged. A label that is named after
    one of several requested classes is that class too; right and left lung only where no label is a lesion.

    Raises:
        InputError: the file is not JSON, or has no valid `labels`.

    """
    content = _read(path)
    named = content.get("labels") if isinstance(content, dict) else None
    try:
        labels = _by_name(named)
    except (TypeError, ValueError, AttributeError):
        expected = '{"background": 0, "lung": 1}'
        raise InputError(f"{path}: no valid labels, expected for example {expected}: correct the file") from None
    requested = _requested_labels(labels, classes)
    is_only = not requested and sum(name.lower() != "ignore" for name in labels) == 1
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name in labels:
        kind = label_class(name, is_only and name.lower() != "ignore") or IGNORED
        if kind not in (IGNORED, "other") or name not in requested.values():
            names[kind].append(name)
    more = [
        Label(kind, _values(labels, [name]))
        for kind, name in requested.items()
        if kind not in ("lung", "clavicle", "heart") and not (kind in LUNG_SIDES and names[LESION])
    ]
    if LUNG not in names and (more or {"clavicle", "heart"} & names.keys() & {*classes}):
        return more + [Label(kind, _values(labels, names[kind])) for kind in ("clavicle", "heart") if names[kind]]
    _log_labels(path, names)
    if "lung" not in names:
        return []
    lungs = [Label("lung", _values(labels, [*names["lung"], *names[LESION]]))]
    kinds = [kind for kind in ("clavicle", "heart", IGNORED, LESION) if names[kind]]
    return lungs + more + [Label(kind, _values(labels, names[kind])) for kind in kinds]


def _requested_labels(labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Return the label that is named after each class; none where only lungs are requested."""
    if tuple(classes) == ONE_CLASS:
        return {}
    return {kind: name for name in labels if (kind := requested_class(name, classes))}


def _log_labels(path: str, names: Mapping[str, list[str]]) -> None:
    """Log what the labels mean; names: kind to the names of labels."""
    if "lung" not in names:
        shown = ", ".join(name for group in names.values() for name in group)
        logger.warning("%s: none of the labels %s is lung: its masks are ignored", path, shown)
        return
    logger.info("%s: the labels %s are lung", path, ", ".join(names["lung"]))
    if names.get(LESION):
        logger.info("%s: the labels %s are lesions, which are part of the lungs", path, ", ".join(names[LESION]))
    ignored = [*names.get("other", ()), *names.get(IGNORED, ())]
    if ignored:
        logger.warning("%s: ignored the labels %s, which are not lungs", path, ", ".join(ignored))


def _values(labels: Mapping[str, list[int]], names: Iterable[str]) -> str:
    return ",".join(map(str, sorted({value for name in names for value in labels[name]})))


def _by_name(labels: Any) -> dict[str, list[int]]:
    """Return the grey values of each label but the background.

    Version 1 and the Decathlon map values to names, version 2 maps names to one value, or to several as in
    `"lung": [1, 2]`.
    """
    by_name: dict[str, list[int]] = {}
    for key, value in labels.items():
        name, numbers = (value, key) if isinstance(value, str) else (key, value)
        listed = [int(number) for number in (numbers if isinstance(numbers, list) else [numbers])]
        if listed != [0]:
            by_name[name] = listed
    return by_name


def read_folds(path: str) -> dict[str, int]:
    """Return the fold of each case in splits_final.json: the one that it validates, or -1 if it is only trained on.

    A case may be given by the name of its file, too.

    Raises:
        InputError: the file is not a list of splits, or a case validates two folds, or trains and validates one.

    """
    splits = _read(path)
    try:
        training = [(_case(name), fold) for fold, split in enumerate(splits) for name in split["train"]]
        validation = [(_case(name), fold) for fold, split in enumerate(splits) for name in split["val"]]
    except (TypeError, KeyError):
        raise InputError(
            f'{path}: expected a list with one {{"train": [...], "val": [...]}} for each fold: correct or remove it'
        ) from None
    leaks = sorted({*training} & {*validation})
    if leaks:
        case, fold = leaks[0]
        raise InputError(f"{path}: {case} is in train and in val of fold {fold}, expected one of them: correct it")
    folds = dict.fromkeys((case for case, _ in training), -1)
    for case, fold in validation:
        if folds.get(case, -1) >= 0:
            raise InputError(f"{path}: {case} is in val of folds {folds[case]} and {fold}, expected one: correct it")
        folds[case] = fold
    return folds


def _case(name: object) -> str:
    """Return the case that a split names, without folder, suffix and channel if it names a file."""
    case = storage.name_of(str(name))
    return stem(case).removesuffix("_0000") if case.lower().endswith(SUFFIXES) else case


def _read(path: str) -> Any:
    try:
        return json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON: the file is damaged; write it again, or remove it") from None
