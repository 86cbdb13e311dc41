"""Copy the elements of a DICOM file whose values have a valid form, with all text in UTF-8.

Files from the field have dates such as 00000000, codes outside the standard and undeclared character sets. Writers of
DICOM refuse these, and what they wrote would not be valid.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

_LAST_GROUP = 0x0040  # patient, study, equipment, acquisition and image; not overlays and pixels
_SPECIFIC_CHARACTER_SET = 0x00080005
_ASCII = "iso8859"  # pydicom's codec for the default character set, and for unknown ones
_SEXES = ("M", "F", "O", "")
_SINGLE_VALUES = ("ST", "LT", "UT", "UR")  # a backslash is text
_NO_CONTROLS = r"[^\x00-\x1f\x7f\\]"
_WITH_LINES = r"[^\x00-\x08\x0b\x0e-\x1f\x7f]"
# Source: DICOM PS3.5, table 6.2-1. UI allows leading zeros, which devices write: a reference has to equal the original.
_FORMS = {
    "AE": r"[ -\[\]-~]{1,16}",
    "AS": r"\d{3}[DWMY]",
    "CS": r"[A-Z0-9 _]{1,16}",
    "DA": r"\d{8}",
    "DS": r"(?=.{1,16}$)[+-]?(\d+\.?\d*|\.\d+)([Ee][+-]?\d+)?",
    "DT": r"\d{4,14}(\.\d{1,6})?([+-]\d{4})?",
    "IS": r"[+-]?\d{1,10}",
    "LO": _NO_CONTROLS + "{1,64}",
    "LT": _WITH_LINES + "{1,10240}",
    "PN": r"(?=[^=]{0,64}(=[^=]{0,64}){0,2}$)" + _NO_CONTROLS + "+",
    "SH": _NO_CONTROLS + "{1,16}",
    "ST": _WITH_LINES + "{1,1024}",
    "TM": r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?",
    "UC": _NO_CONTROLS + "+",
    "UI": r"(?=.{1,64}$)\d+(\.\d+)+",
    "UR": r"[!-~]+",
    "UT": _WITH_LINES + "+",
}
_PATTERNS = {kind: re.compile(form, re.DOTALL) for kind, form in _FORMS.items()}


def copy_valid(dataset: Dataset, encodings: Sequence[str] | None = None) -> tuple[Dataset, list[str]]:
    """Copy the standard elements that have a valid value; return the copy, and the keywords of the ones left out.

    dataset: as read, with raw values; encodings: of the enclosing dataset, for an item of a sequence. Empty elements
    are copied. Private elements, pixels, overlays and curves are not. The copy declares ISO_IR 192 (UTF-8).
    """
    encodings = _declared(dataset) or encodings or ()
    copy = Dataset()
    left_out: list[str] = []
    for tag in sorted(dataset.keys()):
        if tag.group > _LAST_GROUP or not dictionary_has_tag(tag) or tag == _SPECIFIC_CHARACTER_SET:
            continue
        element = _copy_element(dataset, tag, encodings, left_out)
        if element is None:
            left_out.append(keyword_for_tag(tag))
        else:
            copy.add(element)
    copy.SpecificCharacterSet = "ISO_IR 192"
    return copy, left_out


def decode_text(content: bytes, encodings: Sequence[str], kind: str) -> str:
    """Decode text with the declared character sets, else as UTF-8, else as Latin-1; never fails."""
    delimiters = PN_DELIMS if kind == "PN" else TEXT_VR_DELIMS  # after these, the first character set starts again
    decoded = decode_bytes(content, list(encodings), delimiters) if encodings else ""
    if decoded and "\ufffd" not in decoded:
        return decoded
    try:
        return content.decode("utf_8")
    except UnicodeDecodeError:
        return content.decode("latin_1")


def _declared(dataset: Dataset) -> list[str]:
    """Return the Python codecs of the declared character sets; empty if none is declared, or an unknown one."""
    try:
        terms = dataset.get("SpecificCharacterSet")
        codecs = convert_encodings(terms) if terms else []
        return [] if codecs == [_ASCII] else codecs
    except (LookupError, ValueError, TypeError, AttributeError):
        return []


def _copy_element(dataset: Dataset, tag: BaseTag, encodings: Sequence[str], left_out: list[str]) -> DataElement | None:
    """Copy an element; None if its value is invalid, or cannot be parsed."""
    raw: Any = dataset.get_item(tag)
    kind = dictionary_VR(tag)
    if isinstance(raw, RawDataElement) and kind in _FORMS:
        values = _split(decode_text(raw.value or b"", encodings, kind), kind)
        allowed = all(is_valid(kind, value, tag) for value in values) and (
            len(values) == 1 or dictionary_VM(tag) != "1"
        )
        return _element(tag, kind, values) if allowed else None
    try:
        element = dataset[tag]
        if element.VR != "SQ":
            return element
        items = [copy_valid(item, encodings) for item in element.value]
    except MemoryError:
        raise
    except Exception:  # pydicom may raise anything for a damaged value
        return None
    for item, names in items:
        del item.SpecificCharacterSet
        left_out += names
    return DataElement(tag, "SQ", [item for item, _ in items])


def is_valid(kind: str, value: str, tag: int = 0) -> bool:
    """Return whether a value, without its padding, is empty or has the form of its value representation."""
    if not value:
        return True
    if not _PATTERNS[kind].fullmatch(value):
        return False
    if kind == "DA":
        return _is_date(value)
    return tag != 0x00100040 or value in _SEXES


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True


def _split(text: str, kind: str) -> list[str]:
    values: Iterable[str] = [text] if kind in _SINGLE_VALUES else text.split("\\")
    strip: Callable[[str], str] = (lambda value: value.rstrip(" \0")) if kind in _SINGLE_VALUES else _strip
    return [strip(value).upper() if kind == "CS" else strip(value) for value in values]


def _strip(value: str) -> str:
    return value.strip(" \0")


def _element(tag: BaseTag, kind: str, values: list[str]) -> DataElement:
    return DataElement(tag, kind, values[0] if len(values) == 1 else values)
