"""Names of classes, the names that lungseg knows, and how they relate."""

import re
from collections.abc import Sequence

LUNG, RIGHT_LUNG, LEFT_LUNG, HEART, OPACITY = "lung", "right_lung", "left_lung", "heart", "opacity"
"""The lungs, each lung as the patient's, the heart, and opacities of the lungs."""

KNOWN_CLASSES = (LUNG, RIGHT_LUNG, LEFT_LUNG, HEART, OPACITY)

LUNG_SIDES = (RIGHT_LUNG, LEFT_LUNG)
LUNGS = (LUNG, *LUNG_SIDES)
ONE_CLASS = (LUNG,)

_OTHER_SIDE = {"left": "right", "right": "left"}
_MASK_END = re.compile(r"_?(masks?|labels?)$")


def lung_parts(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that make up both lungs: right and left lung, else the class lung; none without them."""
    if all(name in classes for name in LUNG_SIDES):
        return LUNG_SIDES
    return ONE_CLASS if LUNG in classes else ()


def compared_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes whose reference masks a prediction of these classes is compared with: also both lungs."""
    return tuple(dict.fromkeys((*classes, *(ONE_CLASS if lung_parts(classes) else ()))))


def is_sided(name: str) -> bool:
    """Return whether a class is on one side of the patient: a word of its name is left or right."""
    return not _OTHER_SIDE.keys().isdisjoint(name.split("_"))


def partner_of(name: str) -> str:
    """Return the class of the other side, as left_lung for right_lung; for a class without a side its own name."""
    return "_".join(_OTHER_SIDE.get(word, word) for word in name.split("_"))


def without_partner(classes: Sequence[str]) -> list[str]:
    """Return the sided classes whose other side is not among the classes."""
    return [name for name in classes if is_sided(name) and partner_of(name) not in classes]


def mirrored_order(classes: Sequence[str]) -> list[int]:
    """Return for each class the number of the class that it becomes in a mirrored image.

    Raises:
        ValueError: a sided class has no partner.

    """
    return [list(classes).index(partner_of(name)) for name in classes]


def requested_class(text: str, classes: Sequence[str]) -> str:
    """Return the class that a column, folder or label is named after, with or without `masks`; "" if none is.

    Case, blanks, hyphens and a plural s do not matter: `Right Lung masks` is right_lung.
    """
    plain = re.sub(r"[\W_]+", "_", text.strip().lower()).strip("_")
    names = {_key(name): name for name in classes}
    return names.get(_key(plain)) or names.get(_key(_MASK_END.sub("", plain)), "")


def similar_names(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes that are probably one by two names, as lung and lungs or left_lung and lung_left."""
    seen: dict[str, str] = {}
    for name in classes:
        key = "".join(sorted(_key(name).split("_")))
        if seen.setdefault(key, name) != name:
            return seen[key], name
    return None


def annotated_by(kinds: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return which of the classes masks of these kinds annotate.

    A mask of the lungs gives each lung, and masks of both lungs give the lungs.
    """
    has_lungs = bool({*LUNGS}.intersection(kinds))
    return tuple(name for name in classes if name in kinds or (name in LUNGS and has_lungs))


def _key(name: str) -> str:
    """Return the words of a name in the singular."""
    return "_".join(re.sub(r"ies$", "y", word).removesuffix("s") for word in name.split("_"))
