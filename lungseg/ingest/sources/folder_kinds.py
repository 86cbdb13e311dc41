"""Recognise by the name of a folder whether it holds X-rays, masks of lungs, or masks of something else."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Content = Literal["images", "lungs", "other"]
"""X-rays; masks of lungs; masks of other structures or findings, which are not used."""

# Words of a folder's name, in any order and case, with or without blanks, underscores and hyphens between them.
_WORDS = {
    "image": r"images?|imgs?|xrays?|cxrs?|radiographs?|films?",
    "mask": r"masks?|labelmaps?|labels?|segmentations|segs?|annotations|annots?|groundtruths?|gts?|contours",
    # A data set is often called "Lung Segmentation", so these are masks only beside images.
    "weak_mask": r"segmentation|annotation|delineations?|segmented",
    "lung": r"lungfields?|lungs?|pulmonary",
    "left": r"left",
    "right": r"right",
    "other": r"infect(?:ion|ed)s?|lesions?|hearts?|cardiac|clavicles?|collarbones?|ribs?|bones?|nodules?|tumou?rs?"
    r"|pneumonia|pneumothorax|consolidations?|opacit(?:y|ies)|effusions?|trachea|spines?|diaphragms?|mediastinum|aorta"
    r"|disease|defects?|ggo|covid(?:19)?|tb|tuberculosis|cardiomegaly|body|thorax|devices?|catheters?|tubes?",
    "subset": r"train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?",
    "neutral": r"png|jpe?g|tiff?|bmp|gif|manual|binary|expert|chest|both|all|final|full|original|raw|tr|ts"
    r"|\d+(?:px|bit)?",
}
_WORD_KINDS = {kind: re.compile(words) for kind, words in _WORDS.items()}
_SEPARATORS = re.compile(r"[\W_]+")
# These hold X-rays even without masks beside them; others, such as `xray`, may be one of several folders of a patient.
_ALWAYS_IMAGES = frozenset({"images", "cxrpng"})


@dataclass(frozen=True)
class FolderKind:
    """What a folder holds.

    side: leftmask or rightmask for the masks of one lung. subset: such as `train` of train_masks, in lower case.
    needs_sibling: only true beside a folder of the other kind, X-rays or masks.
    """

    content: Content
    side: str = ""
    subset: str = ""
    needs_sibling: bool = False


@lru_cache(100_000)
def kind_of(name: str) -> FolderKind | None:
    """Return what a folder with this name holds, or None if the name does not say.

    Masks whose name has an unknown word, as in `vessel masks`, are masks of something else.
    """
    key = _SEPARATORS.sub("", name.lower())
    words = _parse(key)
    if words is None:
        is_mask = re.search(r"(masks?|segmentations|labelmaps?)$", key)
        return FolderKind("other", needs_sibling=True) if is_mask else None
    kinds = set(words)
    subset = words.get("subset", "")
    if kinds & {"mask", "weak_mask"}:
        content: Content = "other" if "other" in kinds else "lungs"
        return FolderKind(content, _side(kinds), subset, needs_sibling="mask" not in kinds)
    if "image" in kinds and kinds <= {"image", "neutral", "subset"}:
        return FolderKind("images", subset=subset, needs_sibling=key not in _ALWAYS_IMAGES)
    if "lung" in kinds and _side(kinds) and kinds <= {"lung", "left", "right", "neutral"}:
        return FolderKind("lungs", _side(kinds), needs_sibling=True)
    return None


@lru_cache(100_000)
def kind_inside_masks(name: str) -> FolderKind | None:
    """Return what a folder inside a folder of masks holds, if its name is a structure, such as `lung` or `leftMask`."""
    words = _parse(_SEPARATORS.sub("", name.lower()))
    if words is None or not set(words) & {"lung", "left", "right", "other"}:
        return None
    if "other" in words:
        return FolderKind("other")
    side = _side(set(words))
    return FolderKind("lungs", side) if "lung" in words or (side and "mask" in words) else None


def label_class(name: str, is_only: bool) -> str:
    """Return the class of lungseg that a label is named after: lung, heart, clavicle, or `` for others.

    is_only: whether there is no other label; then names such as `foreground` and `mask` mean lung, too.
    """
    key = _SEPARATORS.sub("", name.lower())
    words = _parse(key)
    if is_only and (key == "foreground" or (words and set(words) <= {"mask", "weak_mask", "neutral"})):
        return "lung"
    if not words:
        return ""
    if set(words) <= {"lung", "left", "right", "mask", "neutral"} and set(words) & {"lung", "left", "right"}:
        return "lung"
    other = words.get("other", "")
    return next((kind for kind in ("heart", "clavicle") if other.startswith(kind)), "")


@lru_cache(100_000)  # of every rest, too: else the time would grow exponentially with the length
def _parse(key: str) -> dict[str, str] | None:
    """Split a key into known words; return a word of each kind, or None if a part of the key is unknown."""
    if not key:
        return {}
    for kind, pattern in _WORD_KINDS.items():
        for end in range(len(key), 0, -1):
            if pattern.fullmatch(key, 0, end):
                rest = _parse(key[end:])
                if rest is not None:
                    return {kind: key[:end], **rest}
    return None


def _side(kinds: set[str]) -> str:
    if {"left", "right"} <= kinds:
        return ""
    return "leftmask" if "left" in kinds else "rightmask" if "right" in kinds else ""
