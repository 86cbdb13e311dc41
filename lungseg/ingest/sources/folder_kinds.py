"""Recognise by the name of a folder whether it holds X-rays, masks of lungs, or masks of something else."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lungseg.ingest.sources.name_words import findings_in, parse, tokens_of, words_of

Content = Literal["images", "lungs", "other"]
"""X-rays; masks of lungs; masks of other structures or findings, which are not used."""

_NEGATIONS = frozenset({"without", "wo", "with", "no", "non", "not", "minus", "for", "to"}) | {
    *("sans", "ohne", "sin", "sem", "senza", "nicht", "kein", "keine", "nao"),
}
_NO_FINDING = re.compile(r"\b(?:no|non|not) (?:findings?|lesions?|nodules?|infect\w*|covid(?: ?19)?|tb|pneumonia) ")
_DISEASE = re.compile(r"covid(19)?|tb|tuberculosis|pneumonia")
_REMOVED = frozenset({"removal", "removed", "removing", "missing", "lacking", "excluded"})
_JOINED_NEGATION = re.compile(r"(without|with|^no|^non|^un)(lung)?(mask|label|segment|annot|groundtruth)")
_MASK_END = re.compile(r"(masks?|segmentations|labelmaps?)$")
_MASK_TOKENS = frozenset({"mask", "masks", "segmentations", "labelmap", "labelmaps", "labels", "annotations"})
_IMAGE_TOKENS = frozenset({"image", "images", "img", "imgs"})
# These hold X-rays even without masks beside them; others, such as `xray`, may be one of several folders of a patient.
_ALWAYS_IMAGES = frozenset({"images", "cxrpng"})


@dataclass(frozen=True)
class FolderKind:
    """What a folder holds.

    side: leftmask or rightmask for the masks of one lung. subset: such as `train` of train_masks, in lower case.
    needs_sibling: only true beside a folder of the other kind, X-rays or masks. is_guess: the name has an unknown word;
    it is not true beside a folder of masks of lungs with a known name.
    """

    content: Content
    side: str = ""
    subset: str = ""
    needs_sibling: bool = False
    is_guess: bool = False


@lru_cache(100_000)
def kind_of(name: str) -> FolderKind | None:
    """Return what a folder with this name holds, or None if the name does not say.

    Masks whose name has an unknown word, as in `reader A masks`, are masks of lungs; only words that name other
    structures or findings, as in `infection masks`, say otherwise. `without masks` names no masks.
    """
    tokens = _without_negation(tokens_of(name))
    key = "".join(tokens)
    words = words_of(tokens)
    if words is None:
        return _guess(tokens)
    kinds = set(words)
    subset = words.get("subset", "")
    if kinds & {"mask", "weak_mask"}:
        is_lung_of_patient = "lung" in kinds and _DISEASE.fullmatch(words.get("lesion", ""))
        is_other = "other" in kinds or ("lesion" in kinds and not is_lung_of_patient)
        content: Content = "other" if is_other else "lungs"
        return FolderKind(content, _side(kinds), subset, needs_sibling="mask" not in kinds)
    if "image" in kinds and kinds <= {"image", "neutral", "subset"}:
        return FolderKind("images", subset=subset, needs_sibling=key not in _ALWAYS_IMAGES)
    if "lung" in kinds and _side(kinds) and kinds <= {"lung", "left", "right", "neutral"}:
        return FolderKind("lungs", _side(kinds), needs_sibling=True)
    return None


@lru_cache(100_000)
def kind_inside_masks(name: str) -> FolderKind | None:
    """Return what a folder inside a folder of masks holds, if its name is a structure, such as `lung` or `leftMask`."""
    words = words_of(tokens_of(name))
    if words is None or not set(words) & {"lung", "left", "right", "other", "lesion"}:
        return None
    if set(words) & {"other", "lesion"}:
        return FolderKind("other")
    side = _side(set(words))
    return FolderKind("lungs", side) if "lung" in words or (side and "mask" in words) else None


def label_class(name: str, is_only: bool) -> str:
    """Return what a label means: lung, heart, clavicle, lesion, other (a known structure), or `` for an unknown name.

    is_only: whether there is no other label; then unknown names, such as `target`, mean lung.
    """
    tokens = tokens_of(name)
    words = words_of(tokens)
    findings = findings_in(tokens)
    if _NEGATIONS & {*tokens} or any(token.startswith("non") for token in tokens):
        return ""
    if "other" in findings:
        other = (words or {}).get("other", "")
        return next((kind for kind in ("heart", "clavicle") if other.startswith(kind)), "other")
    if "lesion" in findings:
        return "lesion"
    if is_only:
        return "lung"
    is_lung = set(words or ()) & {"lung", "left", "right"}
    return "lung" if is_lung and set(words or ()) <= {"lung", "left", "right", "mask", "neutral", "region"} else ""


def _without_negation(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Cut off what only limits the masks, as in `masks without heart` and `no finding masks`.

    Nothing is left if the name says that there are no masks.
    """
    tokens = tuple(_NO_FINDING.sub("", " ".join(tokens)).split())
    if _REMOVED & {*tokens} or any(_JOINED_NEGATION.search(token) for token in tokens):
        return ()
    number = next((number for number, token in enumerate(tokens) if token in _NEGATIONS), None)
    if number is None:
        return tokens
    if not any(_is_mask(token) for token in tokens[:number]):
        return ()
    return tokens if tokens[number] == "with" else tokens[:number]


def _is_mask(token: str) -> bool:
    return bool({"mask", "weak_mask"} & {*(parse(token) or ())})


def _guess(tokens: tuple[str, ...]) -> FolderKind | None:
    """Return what a folder with an unknown word in its name holds: masks, if the name says so, or unknown."""
    if not (_MASK_END.search("".join(tokens)) or _MASK_TOKENS & {*tokens}) or _IMAGE_TOKENS & {*tokens}:
        return None
    if findings_in(tokens):
        return FolderKind("other", needs_sibling=True)
    return FolderKind("lungs", _side({*tokens}), needs_sibling=True, is_guess=True)


def _side(kinds: set[str]) -> str:
    if {"left", "right"} <= kinds:
        return ""
    return "leftmask" if "left" in kinds else "rightmask" if "right" in kinds else ""
