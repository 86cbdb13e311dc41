"""Read dataset.json and splits_final.json of nnU-Net: the grey values of the lungs, and the folds."""

import json
import logging
from collections import defaultdict
from typing import Any, NamedTuple

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.sources.folder_kinds import label_class

logger = logging.getLogger(__name__)


class Label(NamedTuple):
    """A class of lungseg and the grey values that mean it in a label file, such as `1,2`."""

    kind: str
    values: str


def read_labels(path: str) -> list[Label]:
    """Return the classes that `labels` of dataset.json names, lungs first; if none is lung, all under their own names.

    Left and right lung are joined. Names that are not classes of lungseg are ignored and logged.

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
    values: defaultdict[str, list[int]] = defaultdict(list)
    ignored = []
    for name, numbers in labels.items():
        kind = label_class(name, is_only=len(labels) == 1)
        if kind:
            values[kind] += numbers
        else:
            ignored.append(name)
    if "lung" not in values:
        logger.warning("%s: none of the labels %s is lung: its masks are ignored", path, ", ".join(labels))
        return [Label(name, ",".join(map(str, numbers))) for name, numbers in labels.items()]
    if ignored:
        logger.warning("%s: ignored the labels %s, which are not lungs", path, ", ".join(ignored))
    kinds = ["lung", *sorted(values.keys() - {"lung"})]
    return [Label(kind, ",".join(map(str, sorted({*values[kind]})))) for kind in kinds]


def _by_name(labels: Any) -> dict[str, list[int]]:
    """Return the grey values of each label but the background.

    Version 1 and the Decathlon map values to names, version 2 maps names to one value, or to several as in
    `"lung": [1, 2]`.
    """
    by_name: dict[str, list[int]] = {}
    for key, value in labels.items():
        name, numbers = (value, key) if isinstance(value, str) else (key, value)
        listed = [int(number) for number in (numbers if isinstance(numbers, list) else [numbers])]
        if listed != [0] and name.lower() != "ignore":
            by_name[name] = listed
    return by_name


def read_folds(path: str) -> dict[str, int]:
    """Return the fold of each case in splits_final.json: the one that it validates, or -1 if it is only trained on.

    Raises:
        InputError: the file is not a list of splits, or a case validates two folds.

    """
    splits = _read(path)
    try:
        training = [str(case) for split in splits for case in split["train"]]
        validation = [(str(case), fold) for fold, split in enumerate(splits) for case in split["val"]]
    except (TypeError, KeyError):
        raise InputError(
            f'{path}: expected a list with one {{"train": [...], "val": [...]}} for each fold: correct or remove it'
        ) from None
    folds = dict.fromkeys(training, -1)
    for case, fold in validation:
        if folds.get(case, -1) >= 0:
            raise InputError(f"{path}: {case} is in val of folds {folds[case]} and {fold}, expected one: correct it")
        folds[case] = fold
    return folds


def _read(path: str) -> Any:
    try:
        return json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON: the file is damaged; write it again, or remove it") from None
