"""Recognise body parts and views in the words of DICOM files and listings, in many languages."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lungseg.imaging.dicom import vocabulary

BodyPart = Literal["", "chest", "several", "other", "unknown"]
"""`""`: the text says nothing. several: the chest with other body parts. other: not the chest."""

ViewKind = Literal["", "frontal", "lateral", "oblique", "unknown"]
"""`""`: the text says nothing. frontal includes a decubitus, whose beam is frontal."""

_NOT_DECOMPOSED = str.maketrans({"ø": "o", "ł": "l", "\u0131": "i", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_VIEW_WORDS = f"{vocabulary.FRONTAL['']} {vocabulary.NEUTRAL_VIEW_WORDS}"
_HARMLESS = " ".join(
    (
        *(vocabulary.CHEST_COMPANIONS, vocabulary.PLACEHOLDERS, vocabulary.NEUTRAL_VIEW_WORDS, vocabulary.LATERAL),
        *(vocabulary.OBLIQUE, vocabulary.DECUBITUS, *vocabulary.FRONTAL.values()),
    )
)
_BOTH_SIDES = re.compile(r"(?<!\w)(?:L\s*[+/&,\\]\s*R|R\s*[+/&,\\]\s*L)(?!\w)", re.IGNORECASE)
_ANGLE = re.compile(r"\d\s*[°º]|\s*[1-8]\d\s*")  # a view of a number alone is an angle; 99 is a placeholder
_ENDING = r"[^\W\d_\u2e80-\u9fff\uac00-\ud7af]{0,4}"  # inflections; Chinese, Japanese and Korean have none
_TWO_LETTERS = re.compile(r"(?<!\w)(\w) (\w)(?!\w)")


@dataclass(frozen=True)
class View:
    """A view: its kind, and its DICOM term (PA, AP, LLD, RLD) where the text says so."""

    kind: ViewKind
    term: str | None = None


# The words of most files. Compiling the patterns for others takes a quarter of a second.
USUAL_PARTS: dict[str, BodyPart] = {"chest": "chest", "": ""}
USUAL_VIEWS = {"pa": View("frontal", "PA"), "ap": View("frontal", "AP"), "chest": View(""), "": View("")}


def fold(text: str) -> str:
    """Reduce text to lower-case words without accents, separated by single spaces; `P.A.` becomes `pa`."""
    lower = unicodedata.normalize("NFKC", _BOTH_SIDES.sub(" both ", text)).casefold().translate(_NOT_DECOMPOSED)
    bare = "".join(char for char in unicodedata.normalize("NFKD", lower) if unicodedata.category(char) != "Mn")
    words = re.sub(r"[\W\d_]+", " ", unicodedata.normalize("NFC", bare)).strip()
    return _TWO_LETTERS.sub(r"\1\2", words)


def classify_body_part(readings: Iterable[str]) -> BodyPart:
    """Classify a body part; readings: the same text in different character sets, the most likely one first.

    The first reading with a known word counts, but a chest in any reading counts before another body part. A chest
    beside unknown words, or in an unknown compound, is unknown.
    """
    words = [fold(text) for text in readings]
    parts = [USUAL_PARTS[text] if text in USUAL_PARTS else words_to_body_part(text) for text in words]
    for kinds in (("chest", "several"), ("other",)):
        match = next((part for part in parts if part in kinds), None)
        if match is not None:
            return match
    is_placeholder = any(text and part == "" for text, part in zip(words, parts, strict=True))
    return parts[0] if parts and not is_placeholder else ""


def classify_view(readings: Iterable[str]) -> View:
    """Classify a view; readings: the same text in different character sets, the most likely one first."""
    texts = list(readings)
    words = [fold(text) for text in texts]
    views = [USUAL_VIEWS.get(text) or words_to_view(text) for text in words]
    known = next((view for view in views if view.kind not in ("", "unknown")), None)
    if known is not None:
        return known
    if any(_ANGLE.search(text) if "°" in text or "º" in text else _ANGLE.fullmatch(text) for text in texts):
        return View("unknown")
    is_placeholder = any(text and view.kind == "" for text, view in zip(words, views, strict=True))
    return views[0] if views and not is_placeholder else View("")


def possible_readings(text: str, declared: Sequence[str]) -> list[str]:
    """Decode text that was read as Latin-1, as pydicom reads coded strings, with every plausible character set.

    declared: the values of SpecificCharacterSet. They are tried first, then those of common languages, because many
    files do not declare their set.
    """
    from pydicom.charset import python_encoding

    try:
        content = text.encode("latin_1")
    except UnicodeEncodeError:
        return [text]
    if content.isascii() and b"\x1b" not in content:
        return [text]
    codecs = [python_encoding[term] for term in declared if term in python_encoding]
    readings = []
    for codec in dict.fromkeys((*reversed(codecs), *vocabulary.GUESSED_CHARACTER_SETS)):
        try:
            readings.append(content.decode(codec))
        except UnicodeDecodeError:
            continue
    return list(dict.fromkeys(readings)) or [text]


def words_to_body_part(words: str) -> BodyPart:
    """Classify the body part of folded text with the patterns of all words."""
    if _matches(vocabulary.SPINE_AND_STERNUM, words):
        return "other"
    if _matches(vocabulary.SEVERAL_PARTS, words):
        return "several"
    if _matches(vocabulary.CHEST, words):
        # In "thorax de face" and "torax de pie", the words for face and foot describe the view.
        if _is_other_part(_pattern(_VIEW_WORDS).sub(" ", words)):
            return "several"
        return "chest" if _is_certain_chest(words) else "unknown"
    if _is_other_part(words):
        return "other"
    return "" if _says_nothing(words, vocabulary.PLACEHOLDERS) else "unknown"


def _is_certain_chest(words: str) -> bool:
    """Return whether all words are of the chest, or harmless beside it; single letters are."""
    without = _pattern(_HARMLESS).sub(" ", _certain_chest().sub(" ", words))
    return all(len(word) == 1 and word.isascii() for word in without.split())


@cache
def _certain_chest() -> re.Pattern[str]:
    """Compile the words for the chest with an inflection only, and their compounds with known parts."""
    glue = "|".join(sorted({re.escape(fold(part)) for part in vocabulary.CHEST_GLUE.split()}, reverse=True))
    words = {spelling for word in vocabulary.CHEST.split() for spelling in (word, word.translate(_UMLAUTS))}
    stems = {" ".join(map(_inflected, word.split("+"))) for word in words}
    return re.compile(rf"(?<!\w)(?:{glue})*(?:{'|'.join(sorted(stems, reverse=True))})(?:{glue})*(?!\w)")


def _inflected(part: str) -> str:
    return re.escape(fold(part)) + (_ENDING if part.endswith("*") else "")


def _is_other_part(words: str) -> bool:
    return any(_matches(listed, words) for listed in vocabulary.OTHER_PARTS.values())


def words_to_view(words: str) -> View:
    """Classify the view of folded text with the patterns of all words."""
    if _matches(vocabulary.DECUBITUS, words):
        oblique_or_lateral = _other_decubitus(words)
        return oblique_or_lateral or View(
            "frontal", next((term for term in ("LLD", "RLD") if term.lower() in words.split()), None)
        )
    term = next((term for term, listed in vocabulary.FRONTAL.items() if _matches(listed, words)), None)
    without = _pattern(vocabulary.NOT_LATERAL).sub(" ", words)
    if _matches(vocabulary.OBLIQUE, words):
        return View("oblique")
    if _matches(vocabulary.LATERAL, without):
        return View("lateral" if term is None else "unknown")  # both, as in "PA + LAT"
    if term is not None:
        return View("frontal", term or None)
    ignored = f"{vocabulary.PLACEHOLDERS} {vocabulary.NEUTRAL_VIEW_WORDS} {vocabulary.CHEST}"
    return View("" if _says_nothing(without, ignored) else "unknown")


def _other_decubitus(words: str) -> View | None:
    """Return the view of a patient who lies, if it is not frontal, as in "dorsal decubitus lateral" and "LLD LAT"."""
    rest = _pattern(f"{vocabulary.DECUBITUS} {vocabulary.NOT_LATERAL}").sub(" ", words)
    if _matches(vocabulary.OBLIQUE, rest):
        return View("oblique")
    names_the_side = "decub" in words or "dekub" in words  # "lateral" may belong to it
    is_flat = _matches(vocabulary.LYING_FLAT, rest)
    return View("lateral") if _matches(vocabulary.LATERAL, rest) and (is_flat or not names_the_side) else None


def _says_nothing(words: str, listed: str) -> bool:
    return not _pattern(listed).sub(" ", words).strip()


def _matches(listed: str, words: str) -> bool:
    return bool(_pattern(listed).search(words))


@cache
def _pattern(listed: str) -> re.Pattern[str]:
    """Compile the words of a list of `vocabulary`; only folded text can match."""
    words = {spelling for word in listed.split() for spelling in (word, word.translate(_UMLAUTS))}
    return re.compile("|".join(sorted(map(_word_pattern, words), reverse=True)))


def _word_pattern(word: str) -> str:
    parts = [part for part in word.split("+") if part]
    return " ".join(_part_pattern(part) for part in parts)


def _part_pattern(part: str) -> str:
    before = r"\w*" if part.startswith("*") else ""
    after = r"\w*" if part.endswith("*") else ""
    return rf"(?<!\w){before}{re.escape(fold(part))}{after}(?!\w)"
