"""Codes of the classes in DICOM segmentations: the category and the type of what a segment shows."""

import hashlib

from lungseg.config.class_names import HEART, LEFT_LUNG, LUNG, OPACITY, RIGHT_LUNG

Code = tuple[str, str, str]
"""Value, coding scheme and meaning."""

# DICOM PS3.16: the categories of CID 7150; the heart and the lungs of CID 7151, and each lung as in SNOMED CT; the
# opacity of CID 6104, whose definition is that of a shadow in a radiograph: SNOMED CT has codes for diseases only.
_STRUCTURE: Code = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
_PROPERTIES: dict[str, tuple[Code, Code]] = {
    RIGHT_LUNG: (_STRUCTURE, ("3341006", "SCT", "Right lung")),
    LEFT_LUNG: (_STRUCTURE, ("44029006", "SCT", "Left lung")),
    LUNG: (_STRUCTURE, ("39607008", "SCT", "Lung")),
    HEART: (_STRUCTURE, ("80891009", "SCT", "Heart")),
    OPACITY: (_ABNORMAL, ("112001", "DCM", "Opacity")),
}
_PRIVATE = "99LUNGSEG"  # schemes whose names begin with 99 are private: PS3.16, section 8.2
_MAX_VALUE, _MAX_MEANING = 16, 64  # characters
_DIGEST = 6


def property_of(name: str) -> tuple[Code, Code]:
    """Return category and type of a class; one without a standard code has its name as a private code.

    The end of a long name is replaced by a digest, so that two classes never have the same code.
    """
    if name in _PROPERTIES:
        return _PROPERTIES[name]
    words = name.replace("_", " ").capitalize()
    value = name
    if len(name) > _MAX_VALUE:
        digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
        value = f"{name[: _MAX_VALUE - _DIGEST - 1]}_{digest}"
    return _STRUCTURE, (value, _PRIVATE, words[:_MAX_MEANING])
