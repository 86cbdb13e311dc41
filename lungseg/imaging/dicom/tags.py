"""Check by DICOM tags that a file is a frontal chest radiograph; extract the few tags that may be stored."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from lungseg.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_RADIOGRAPHS = ("", "CR", "DX", "DR", "RG", "OT", "SC")
_CHEST = re.compile("CHEST|CHST|THORA|TORA|LUNG|PULM|BRUST|POUMON|POLMON|PECHO|BORST")
_SPINE = re.compile("SPIN|VERTEB|CERVI|LUMB|WIRBEL|RACHIS|COLUMN|COLONN")  # "thoracic spine" is not a chest
# Chest, lung, structure of the thorax and of its cavity, in SNOMED RT and SNOMED CT (DICOM's context group 4031).
_CHEST_CODES = ("T-D3000", "T-28000", "51185008", "39607008", "43799004")
_UNSPECIFIED = ("", "UNKNOWN", "OTHER", "NONE", "ANY", "DEFAULT")
_VIEWS = ("PA", "AP", "LLD", "RLD", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO")
_LATERAL = {"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"}
# Lateral, left and right lateral of DICOM's context group 4010, in SNOMED CT.
_LATERAL_CODES = ("399067008", "399173006", "399198007")
_SEXES = {"F": "female", "M": "male", "O": "other"}
_AGE = re.compile(r"(\d{1,3})([DWMY]?)")
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25, "": 365.25}
_OLDEST = 130  # years; a higher age means an invented date
_ANISOTROPIC = 1.05


@dataclass(frozen=True)
class Tags:
    """The only data that is taken from a DICOM file besides its pixels.

    patient_id: a pseudonym, empty without a key; age_group: ten years such as 40-49, or 90+; sex: female, male or
    other; view: PA, AP ...; spacing_mm: pixel spacing at the patient if known, else at the detector.
    """

    patient_id: str = ""
    age_group: str | None = None
    sex: str | None = None
    view: str | None = None
    spacing_mm: float | None = None
    manufacturer_model: str | None = None


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
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
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
    """Return the items of a sequence; empty if it is absent."""
    value = element_value(dataset, name)
    return [] if value is None or isinstance(value, str | bytes) else list(value)


def extract_tags(dataset: "Dataset", patient_id: str) -> Tags:
    """Extract the tags that may be stored; patient_id must be a pseudonym."""
    position = _words(dataset, "ViewPosition")
    model = element_value(dataset, "ManufacturerModelName")
    return Tags(
        patient_id=patient_id,
        age_group=_age_group(dataset),
        sex=_SEXES.get(element_text(dataset, "PatientSex")),
        view=next((word for word in position if word in _VIEWS), None),
        spacing_mm=_spacing(dataset),
        manufacturer_model=" ".join(str(model).split()) if model is not None else None,
    )


def check_chest(dataset: "Dataset", display_name: str) -> None:
    """Refuse files whose tags name another modality or body part; missing tags pass.

    Raises:
        ImageError: `not_radiograph` or `body_part`.

    """
    if element_text(dataset, "Modality") not in _RADIOGRAPHS:
        known = ", ".join(name for name in _RADIOGRAPHS if name)
        raise ImageError(
            "not_radiograph", f"{display_name} has an unsupported Modality (0008,0060), expected {known}: leave it out"
        )
    body_part = element_text(dataset, "BodyPartExamined")
    regions = sequence_items(dataset, "AnatomicRegionSequence") if body_part in _UNSPECIFIED else []
    chest = not regions or any(map(_is_chest_region, regions)) if body_part in _UNSPECIFIED else _is_chest(body_part)
    if not chest:
        tag = "AnatomicRegionSequence (0008,2218)" if regions else "BodyPartExamined (0018,0015)"
        raise ImageError(
            "body_part", f"{display_name} is not of a chest according to its {tag}: leave it out, or correct the tag"
        )


def check_frontal(dataset: "Dataset", display_name: str) -> None:
    """Refuse a lateral view. A lateral decubitus passes: it is a frontal projection.

    Raises:
        ImageError: `lateral_view`.

    """
    position = _words(dataset, "ViewPosition")
    if _LATERAL & set(position) and "DECUBITUS" not in position:
        tag = "ViewPosition (0018,5101)"
    elif any(map(_is_lateral, sequence_items(dataset, "ViewCodeSequence"))):
        tag = "ViewCodeSequence (0054,0220)"
    elif element_text(dataset, "PatientOrientation").startswith(("A", "P")):
        tag = "PatientOrientation (0020,0020)"  # rows run front to back
    else:
        return
    raise ImageError(
        "lateral_view", f"{display_name} is a lateral view according to its {tag}, expected a frontal one: leave it out"
    )


def _words(dataset: "Dataset", name: str) -> list[str]:
    return re.sub(r"[^A-Z]+", " ", element_text(dataset, name)).split()


def _is_chest(words: str) -> bool:
    return bool(_CHEST.search(words)) and not _SPINE.search(words)


def _is_chest_region(region: "Dataset") -> bool:
    return element_text(region, "CodeValue") in _CHEST_CODES or _is_chest(element_text(region, "CodeMeaning"))


def _is_lateral(view: "Dataset") -> bool:
    meaning = element_text(view, "CodeMeaning")
    named = "LATERAL" in meaning and not re.search("DECUBITUS|OBLIQUE", meaning)
    return named or element_text(view, "CodeValue") in _LATERAL_CODES


def _age_group(dataset: "Dataset") -> str | None:
    """Return the decade of the age, from PatientAge, else from birth and study dates."""
    age = _AGE.fullmatch(element_text(dataset, "PatientAge"))
    if age:
        years = int(age[1]) * _DAYS[age[2]] / _DAYS["Y"]
    else:
        birth, study = (_date(dataset, name) for name in ("PatientBirthDate", "StudyDate"))
        if birth is None or study is None:
            return None
        years = study.year - birth.year - ((study.month, study.day) < (birth.month, birth.day))
    if not 0 <= years <= _OLDEST:
        return None
    decade = int(years) // 10 * 10
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"


def _date(dataset: "Dataset", name: str) -> date | None:
    digits = element_text(dataset, name).replace(".", "").replace("-", "")
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


def _spacing(dataset: "Dataset") -> float | None:
    """Return the mean of row and column spacing; None if one is 0 or they differ by more than 5 %."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        sides = element_numbers(dataset, name)
        if len(sides) == 2 and min(sides) > 0:
            return sum(sides) / 2 if max(sides) / min(sides) <= _ANISOTROPIC else None
    return None
