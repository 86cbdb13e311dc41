"""Find the columns of a listing by role, whatever the spelling of their names."""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence

from lungseg.config import ListingColumns
from lungseg.config.class_names import KNOWN_CLASSES, LUNG, LUNG_SIDES, LUNGS, ONE_CLASS, requested_class
from lungseg.errors import InputError
from lungseg.ingest.sources.text_tables import find_column, plain_name

logger = logging.getLogger(__name__)

MaskColumns = list[tuple[str, str]]
"""(class, column) of each mask."""

# The first name is the usual one; the others are used if no column has it. Compared without case, blanks, - and _.
_NAMES = {
    "image": ("image", "images", "image_path", "image_file"),
    "mask": ("mask", "masks", "mask_path", "mask_file", "lung_mask", "lung_masks"),
    "patient_id": ("patient_id", "patient", "patients", "patient_ids", "subject", "subject_id"),
    "dataset": ("dataset", "datasets"),
    "finding": ("finding", "findings"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "view": ("view", "views", "view_position", "projection"),
}
# Words in the name of an unused column that may mean a role. `label` may be a finding or a mask, so nothing is assumed.
_HINTS = {
    "mask": ("mask", "masks", "segmentation"),
    "patient_id": ("patient", "subject", "pat"),
    "dataset": ("dataset",),
    "finding": ("finding", "findings", "label", "labels", "diagnosis"),
    "age": ("age",),
    "sex": ("sex", "gender"),
    "view": ("view", "projection", "position"),
}
_OPTIONAL = tuple(role for role in _NAMES if role not in ("image", "mask"))
_SIMILAR = 0.75  # of difflib: one wrong, missing or swapped letter; the first letter has to be the same
_WORDS = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])")


def find_columns(
    columns: ListingColumns, names: Sequence[str], path: str, classes: Sequence[str] = ONE_CLASS
) -> tuple[dict[str, str], MaskColumns]:
    """Find the column of each role and of each mask; warn of unused columns that are named like one of them.

    Of several classes, a column that is named after one holds its masks, where --columns.masks names no column for it.

    Raises:
        InputError: a column or class named in the settings is missing, the image has no column, or several fit.

    """
    named = {role: getattr(columns, role) for role in ("image", *_OPTIONAL) if getattr(columns, role)}
    if named["image"] == "image":  # the default
        del named["image"]
    roles = {role: _named_column(column, names, path) for role, column in named.items()}
    masks = [
        (kind, _named_column(column, names, path)) for kind, column in _mask_entries(columns, names, path, classes)
    ]
    for role in [role for role in ("image", *_OPTIONAL) if role not in named]:
        column = _usual_column(role, names, path)
        if column is not None:
            roles[role] = column
    if "image" not in roles:
        raise _missing("image", names, path, "--columns.image")
    masks += _columns_of_classes(names, classes, [*roles.values(), *(column for _, column in masks)], masks)
    needs_lungs = {*LUNGS}.intersection(classes) and not any(kind in LUNGS for kind, _ in masks)
    usual_mask = _usual_column("mask", names, path) if needs_lungs or not masks else None
    masks += [("lung", usual_mask)] if usual_mask else []
    if LUNG in classes and not any(kind in LUNGS for kind, _ in masks):
        masks += _columns_of_both_lungs(names, path)
    open_roles = {*_HINTS} - {*roles} - ({"mask"} if columns.masks else set())
    unused = sorted(set(names) - {*roles.values(), *(column for _, column in masks)})
    of_classes = _near_classes(unused, [name for name in classes if name not in {kind for kind, _ in masks}])
    for name, kind in of_classes.items():
        logger.warning(
            "%s: column %s is not used; if it is the class %s, pass --columns.masks %s=%s", path, name, kind, kind, name
        )
    _warn_of_unused([name for name in unused if name not in of_classes], open_roles, path)
    return roles, masks


def _mask_entries(columns: ListingColumns, names: Sequence[str], path: str, classes: Sequence[str]) -> MaskColumns:
    """Split the entries CLASS=COLUMN of the settings.

    An entry without a class is of the requested class that it is named after, else of the lungs.

    Raises:
        InputError: the class is neither requested nor one that lungseg knows.

    """
    entries = []
    for entry in columns.masks:
        kind, equals, column = entry.partition("=")
        if equals and entry not in names:
            known = tuple(dict.fromkeys((*classes, *KNOWN_CLASSES)))
            if not (name := requested_class(kind, known)):
                raise InputError(
                    f"{path}: --columns.masks {entry}: {kind} is not a class: name one of {', '.join(known)}, or add "
                    "it to the classes"
                )
            entries.append((name, column))
        else:
            entries.append((_class_of(entry, classes) or "lung", entry))
    return entries


def _class_of(column: str, classes: Sequence[str]) -> str:
    return "" if tuple(classes) == ONE_CLASS else requested_class(column, classes)


def _columns_of_classes(
    names: Sequence[str], classes: Sequence[str], used: Sequence[str], masks: MaskColumns
) -> MaskColumns:
    """Return the unused columns that are named after a class which has no column yet."""
    known = {kind for kind, _ in masks}
    pairs = [(_class_of(name, classes), name) for name in names if name not in used]
    return [(kind, name) for kind, name in pairs if kind and kind not in known]


def _columns_of_both_lungs(names: Sequence[str], path: str) -> MaskColumns:
    """Return one column for each lung, as left_lung and right_lung, which are the lungs together; else none.

    Raises:
        InputError: several columns fit one lung.

    """
    sides = [[name for name in names if requested_class(name, LUNG_SIDES) == side] for side in LUNG_SIDES]
    if not all(sides):
        return []
    for fitting in sides:
        if len(fitting) > 1:
            raise InputError(
                f"{path}: columns {' and '.join(fitting)} may both be the mask of one lung: name one with "
                "--columns.masks"
            )
    return [(LUNG, fitting[0]) for fitting in sides]


def _named_column(column: str, names: Sequence[str], path: str) -> str:
    """Return the column that the settings name: the one with exactly this name, else the one that differs in spelling.

    Raises:
        InputError: there is none, or several.

    """
    exact = [name for name in names if name == column]
    match = find_column(column, exact or names, path)
    if match is None:
        raise _missing(column, names, path)
    return match


def _usual_column(role: str, names: Sequence[str], path: str) -> str | None:
    usual, *others = _NAMES[role]
    match = find_column(usual, names, path)
    if match is not None:
        return match
    candidates = [name for name in (find_column(other, names, path) for other in others) if name is not None]
    if len(candidates) > 1:
        option = "masks" if role == "mask" else role.replace("_", "-")
        raise InputError(
            f"{path}: columns {' and '.join(candidates)} may both be the {usual}: name one with --columns.{option}"
        )
    return candidates[0] if candidates else None


def _missing(column: str, names: Sequence[str], path: str, option: str = "") -> InputError:
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(column.lower(), folded, 1)
    hint = f"did you mean {folded[near[0]]}?" if near else "name one of these"
    named = f" ({option})" if option else ""
    return InputError(f"{path}: no column {column}; it has {', '.join(names)}: {hint}{named}")


def _near_classes(unused: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Map each unused column to the requested class that it probably misspells."""
    plain = {plain_name(kind): kind for kind in classes if kind != LUNG}
    near = {name: _close_matches(plain_name(name), plain) for name in unused}
    return {name: plain[match[0]] for name, match in near.items() if match}


def _close_matches(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, [other for other in known if other[:1] == name[:1]], 1, _SIMILAR)


def _warn_of_unused(unused: Iterable[str], roles: set[str], path: str) -> None:
    near = {name: role for name in sorted(unused) if (role := _near_role(name, roles)) is not None}
    for name, role in near.items():
        option = "masks" if role == "mask" else role.replace("_", "-")
        logger.warning("%s: column %s is not used; if it is the %s, pass --columns.%s", path, name, role, option)


def _near_role(name: str, roles: set[str]) -> str | None:
    words = {word.lower() for word in _WORDS.findall(name)}
    for role in (role for role in _HINTS if role in roles):
        plain = plain_name(name)
        known = [usual for usual in map(plain_name, _NAMES[role]) if len(usual) > 3]
        if words & {*_HINTS[role]} or _close_matches(plain, known):
            return role
    return None
