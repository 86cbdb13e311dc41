"""Check by DICOM tags that a file is a frontal chest radiograph; extract the few tags that may be stored."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from lungseg.errors import ImageError
from lungseg.imaging.dicom import vocabulary, wording
from lungseg.imaging.orientation import UPRIGHT, from_directions

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_RADIOGRAPHS = ("CR", "DX", "DR", "RG", "OT", "SC")
_SEXES = {"F": "female", "M": "male", "O": "other"}
_AGE = re.compile(r"(\d{1,3})([DWMY]?)")
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25, "": 365.25}
_OLDEST = 122  # years, the longest documented life; more is a placeholder such as 999Y
_NO_BIRTH_DATE = date(1900, 1, 1)  # what programs write for an unknown one
_ANISOTROPIC = 1.05
_PLAUSIBLE_MM = (50.0, 1000.0)  # longer side of a chest X-ray; a spacing of 1 mm is often a placeholder
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")  # of the patient before that of the detector
_FLAGS = ("body_part_unknown", "body_part_several", "view_unknown", "spacing_unusable")


class Repair(NamedTuple):
    """What was changed to read the pixels of a file: a reason code, and a sentence for its row."""

    code: str
    message: str


@dataclass(frozen=True)
class Tags:
    """The only data that is taken from a file besides its pixels; all but the orientation is of DICOM files only.

    patient_id: a pseudonym, empty without a key; age_group: ten years such as 40-49, or 90+; sex: female, male or
    other; view: PA, AP, LLD or RLD; spacing_mm: pixel spacing at the patient if known, else at the detector. flags:
    reason codes of what the tags leave open, such as `view_unknown`. orientation: of the stored pixels, 1 to 8 as in
    EXIF. repairs: what was changed to read the pixels.
    """

    patient_id: str = ""
    age_group: str | None = None
    sex: str | None = None
    view: str | None = None
    spacing_mm: float | None = None
    manufacturer_model: str | None = None
    flags: tuple[str, ...] = ()
    orientation: int = UPRIGHT
    repairs: tuple[Repair, ...] = ()


def element_value(dataset: "Dataset", name: str) -> Any:
    """Return the value of an element; None if it is absent, empty or cannot be parsed."""
    try:
        value = dataset.get(name)
        return value if value is None or isinstance(value, bytes) or str(value).strip() else None
    except MemoryError:
        raise
    except Exception:  # pydicom parses elements lazily and may raise anything
        return None


def element_text(dataset: "Dataset", name: str) -> str:
    """Return the first value of an element in upper case; empty if there is none."""
    value = element_value(dataset, name)
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    first = next(iter(value), None) if is_list else value
    return "" if first is None else str(first).strip().upper()


def element_numbers(dataset: "Dataset", name: str) -> list[float]:
    """Return the values of an element as numbers; empty if one is not a finite number."""
    value = element_value(dataset, name)
    try:
        is_single = isinstance(value, str | bytes | int | float)
        numbers = [float(item) for item in ([value] if is_single else value or [])]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def element_int(dataset: "Dataset", name: str, default: int = 0) -> int:
    """Return the first value of an element as an integer."""
    numbers = element_numbers(dataset, name)
    return int(numbers[0]) if numbers else default


def sequence_items(dataset: "Dataset", name: str) -> list["Dataset"]:
    """Return the items of a sequence; empty if it is absent, or another type of element."""
    from pydicom.sequence import Sequence as Items

    value = element_value(dataset, name)
    return list(value) if isinstance(value, Items) else []


def element_readings(dataset: "Dataset", name: str) -> list[str]:
    """Return the text of an element in every plausible character set, all its values joined; empty if there is none.

    Coded strings must be ASCII, but many devices write the local language. pydicom reads them as Latin-1.
    """
    value = element_value(dataset, name)
    if value is None:
        return []
    text = (
        value if isinstance(value, str) else "\\".join(map(str, value)) if isinstance(value, Sequence) else str(value)
    )
    declared = element_value(dataset, "SpecificCharacterSet") or ""
    return wording.possible_readings(text, [declared] if isinstance(declared, str) else list(declared))


def extract_tags(dataset: "Dataset", patient_id: str) -> Tags:
    """Extract the tags that may be stored; patient_id must be a pseudonym."""
    model = element_value(dataset, "ManufacturerModelName")
    part, view = _body_part(dataset)[0], _view(dataset)[0]
    spacing = _spacing(dataset)
    has_spacing = any(element_value(dataset, name) is not None for name in _SPACINGS)
    flags = (f"body_part_{part}", f"view_{view.kind}", "spacing_unusable" if has_spacing and not spacing else "")
    return Tags(
        patient_id=patient_id,
        age_group=_age_group(dataset),
        sex=_SEXES.get(element_text(dataset, "PatientSex")),
        view=view.term,
        spacing_mm=spacing,
        manufacturer_model=" ".join(str(model).split()) if model is not None else None,
        flags=tuple(flag for flag in flags if flag in _FLAGS),
        orientation=_orientation(dataset),
    )


def check_chest(dataset: "Dataset", display_name: str) -> None:
    """Refuse files whose tags name another modality or body part; missing tags and unknown words pass.

    Raises:
        ImageError: `not_radiograph` or `body_part`.

    """
    modality = element_text(dataset, "Modality")
    if modality not in _RADIOGRAPHS and wording.classify_body_part([modality]) != "":
        known = ", ".join(_RADIOGRAPHS)
        raise ImageError(
            "not_radiograph", f"{display_name} has an unsupported Modality (0008,0060), expected {known}: leave it out"
        )
    part, tag = _body_part(dataset)
    if part == "other":
        raise ImageError(
            "body_part", f"{display_name} is not of a chest according to its {tag}: leave it out, or correct the tag"
        )


def check_frontal(dataset: "Dataset", display_name: str) -> None:
    """Refuse a lateral or oblique view. A lateral decubitus passes: its beam is frontal. Unknown words pass.

    Raises:
        ImageError: `lateral_view` or `oblique_view`.

    """
    view, tag = _view(dataset)
    refuse_view(view.kind, f"{display_name} (according to its {tag})")


def refuse_view(kind: wording.ViewKind, subject: str) -> None:
    """Refuse a lateral or oblique view; subject: what has the view, for the message.

    Raises:
        ImageError: `lateral_view` or `oblique_view`.

    """
    if kind == "lateral":
        raise ImageError("lateral_view", f"{subject} is a lateral view, expected a frontal one: leave it out")
    if kind == "oblique":
        raise ImageError("oblique_view", f"{subject} is an oblique view, expected a frontal one: leave it out")


def _orientation(dataset: "Dataset") -> int:
    """Return the orientation of the stored pixels. FieldOfViewRotation describes them too, but is already applied."""
    value = element_value(dataset, "PatientOrientation")
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 2:
        return UPRIGHT
    return from_directions(*(str(direction).strip().upper() for direction in value))


def _body_part(dataset: "Dataset") -> tuple[wording.BodyPart, str]:
    """Return the body part, and the tag that names it. Codes of the region are used where the words say nothing."""
    part = wording.classify_body_part(element_readings(dataset, "BodyPartExamined"))
    if part not in ("", "unknown"):
        return part, "BodyPartExamined (0018,0015)"
    regions = [_region(region) for region in sequence_items(dataset, "AnatomicRegionSequence")]
    known = next((kind for kind in ("several", "chest", "other") if kind in regions), None)
    first = next((kind for kind in (part, *regions) if kind), part)
    return known or first, "AnatomicRegionSequence (0008,2218)"


def _region(region: "Dataset") -> wording.BodyPart:
    code = element_text(region, "CodeValue")
    if code in vocabulary.CHEST_CODES:
        return "chest"
    if code in vocabulary.SEVERAL_PARTS_CODES:
        return "several"
    return wording.classify_body_part(element_readings(region, "CodeMeaning"))


def _view(dataset: "Dataset") -> tuple[wording.View, str]:
    """Return the view, and the tag that names it. A lateral or oblique view in any of the tags counts."""
    stated = wording.classify_view(element_readings(dataset, "ViewPosition"))
    views = [(stated, "ViewPosition (0018,5101)")]
    codes = sequence_items(dataset, "ViewCodeSequence")
    views += [(_coded_view(code), "ViewCodeSequence (0054,0220)") for code in codes]
    if element_text(dataset, "PatientOrientation").startswith(("A", "P")):  # rows run front to back
        views.append((wording.View("lateral"), "PatientOrientation (0020,0020)"))
    in_part = wording.classify_view(element_readings(dataset, "BodyPartExamined"))
    if stated.kind != "frontal" and in_part.kind in ("frontal", "lateral", "oblique"):  # as in "CHEST LAT"
        views.append((in_part, "BodyPartExamined (0018,0015)"))
    for kinds in (("lateral", "oblique"), ("frontal",), ("unknown",)):
        match = next((view for view in views if view[0].kind in kinds), None)
        if match:
            return match
    return wording.View(""), ""


def _coded_view(code: "Dataset") -> wording.View:
    value = element_text(code, "CodeValue")
    if value in vocabulary.LATERAL_CODES:
        return wording.View("lateral")
    if value in vocabulary.OBLIQUE_CODES:
        return wording.View("oblique")
    if value in vocabulary.FRONTAL_CODES:
        return wording.View("frontal", vocabulary.FRONTAL_CODES[value] or None)
    return wording.classify_view(element_readings(code, "CodeMeaning"))


def _age_group(dataset: "Dataset") -> str | None:
    """Return the decade of the age, from PatientAge, else from birth and study dates.

    Zero years is what programs write for an unknown age; the age of an infant is in months, weeks or days.
    """
    years = _stated_age(element_text(dataset, "PatientAge"))
    if years is None:
        birth, study = (_date(dataset, name) for name in ("PatientBirthDate", "StudyDate"))
        if birth is None or study is None or birth == _NO_BIRTH_DATE:
            return None
        years = study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
    if not 0 <= years <= _OLDEST:
        return None
    decade = int(years) // 10 * 10
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"


def _stated_age(text: str) -> float | None:
    """Return the years of an age such as 045Y or 006M; None for a placeholder."""
    age = _AGE.fullmatch(text)
    if not age or (int(age[1]) == 0 and age[2] in ("", "Y")):
        return None
    years = int(age[1]) * _DAYS[age[2]] / _DAYS["Y"]
    return years if years <= _OLDEST else None


def _date(dataset: "Dataset", name: str) -> date | None:
    digits = element_text(dataset, name).replace(".", "").replace("-", "")
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


def pixel_spacing(dataset: "Dataset") -> list[float]:
    """Return row and column spacing in mm, of the patient before that of the detector; empty without valid ones."""
    for name in _SPACINGS:
        sides = element_numbers(dataset, name)
        if len(sides) == 2 and min(sides) > 0:
            return list(sides)
    return []


def _spacing(dataset: "Dataset") -> float | None:
    """Return the mean of row and column spacing; None if there is none, or no chest X-ray has it.

    They may differ by 5 %, and the image must be from 5 cm to 1 m long.
    """
    sides = pixel_spacing(dataset)
    if not sides or max(sides) / min(sides) > _ANISOTROPIC:
        return None
    spacing = sum(sides) / 2
    longer = spacing * max(element_int(dataset, name) for name in ("Rows", "Columns"))
    return spacing if _PLAUSIBLE_MM[0] <= longer <= _PLAUSIBLE_MM[1] else None
