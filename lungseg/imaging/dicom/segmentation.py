"""Write masks as a DICOM Segmentation in the study of the radiograph."""

import hashlib
import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lungseg import __version__
from lungseg.config.class_names import LUNG_SIDES
from lungseg.errors import ImageError, SettingsError
from lungseg.imaging.dicom.quiet import silence_libraries
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.imaging.dicom.segment_codes import property_of
from lungseg.imaging.dicom.tags import pixel_spacing

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

U8 = NDArray[np.uint8]

_NO_SPACING = 1.0  # mm, if the radiograph has none: the object requires a value, viewers align by pixels
_REQUIRED = ("Rows", "Columns", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PERSON = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_COPIED = (*_PERSON, "StudyDate", "StudyTime", "StudyID", "AccessionNumber")
# The object needs these to refer to the radiograph; what else the file says of patient, study and device stays there.
_GEOMETRY = ("FrameOfReferenceUID", "PatientOrientation", "ImagerPixelSpacing", "PixelSpacing")
_KEPT = (*_REQUIRED, *_COPIED, *_GEOMETRY, "SpecificCharacterSet", "Modality")


def require_highdicom() -> None:
    """Check that the package that writes segmentations is installed.

    Raises:
        SettingsError: it is not.

    """
    if find_spec("highdicom") is None:
        raise SettingsError("DICOM segmentations need highdicom: pip install 'lungseg[dicom-seg]'")


def encode_segmentation(content: bytes, masks: dict[str, U8], model: str, display_name: str) -> bytes:
    """Encode a binary segmentation that refers to the radiograph and belongs to its study.

    content: the radiograph's file. masks: u8[H,W] in {0,1} at its size by class, such as `right_lung`; they may
    overlap; each is a segment, and empty ones are skipped. model: digest of the weights, stored as the algorithm
    version. UIDs are derived from these inputs and times are those of the radiograph, so the same call
    gives the same bytes. The object contains the patient's identity: the elements that join it to its patient and study
    (`_COPIED` and UIDs), and no others; no other output of lungseg does. Text is in UTF-8. Invalid values, such as the
    date 00000000, are left empty; `invalid_elements` names them.

    Raises:
        ImageError: `not_dicom`, `mask_empty`, `seg_reference`, `changed` or `seg_refused`. No message quotes a value.
        SettingsError: highdicom is not installed.

    """
    require_highdicom()
    if not is_dicom(content):
        raise ImageError("not_dicom", f"{display_name} is not a DICOM file: DICOM segmentations need a DICOM image")
    present = {name: mask for name, mask in masks.items() if mask.any()}
    if not present:
        raise ImageError(
            "mask_empty", f"{display_name} has an empty mask: a DICOM segmentation needs at least one segment"
        )
    source, _ = _read_valid(content, display_name)
    missing = [name for name in _REQUIRED if not source.get(name)]
    if missing:
        raise ImageError(
            "seg_reference",
            f"{display_name} lacks {missing[0]}, or its value is invalid; a segmentation must refer to it: export the "
            "file again",
        )
    shape = (source.get("Rows"), source.get("Columns"))
    if shape != next(iter(present.values())).shape:
        raise ImageError(
            "changed", f"{display_name} is {shape[0]}x{shape[1]} px, but its mask has another size: predict it again"
        )
    with _refusing(display_name):
        return _build(source, present, model)


def invalid_elements(content: bytes, display_name: str) -> list[str]:
    """Name the patient and study elements that `encode_segmentation` leaves empty because their values are invalid.

    Raises:
        ImageError: `seg_refused`.

    """
    _, left_out = _read_valid(content, display_name)
    return [name for name in _COPIED if name in left_out]


def _read_valid(content: bytes, display_name: str) -> tuple["Dataset", list[str]]:
    import pydicom

    from lungseg.imaging.dicom.valid_values import copy_valid

    silence_libraries()
    with _refusing(display_name):
        copy, left_out = copy_valid(pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True))
        for name in {element.keyword for element in copy} - {*_KEPT}:
            delattr(copy, name)
        return copy, left_out


@contextmanager
def _refusing(display_name: str) -> Iterator[None]:
    """Convert any exception of a DICOM library to ImageError, without its text, which can quote the patient."""
    try:
        yield
    except MemoryError:
        raise
    except Exception:
        raise ImageError(
            "seg_refused",
            f"{display_name} has elements that cannot be written to a DICOM segmentation: export the file again",
        ) from None


def _build(source: "Dataset", masks: dict[str, U8], model: str) -> bytes:
    import highdicom

    _add_missing_elements(source)
    pixels = np.stack(list(masks.values()), axis=-1)[None].astype(np.uint8)
    is_lungs = {*masks} <= {*LUNG_SIDES}
    names = "" if is_lungs else ",".join(masks)
    inputs_digest = f"{model} {hashlib.sha256(np.packbits(pixels).tobytes() + names.encode()).hexdigest()}"
    segmentation = highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, name, model) for number, name in enumerate(masks, start=1)],
        series_instance_uid=_uid("series", source, model),
        series_number=100,
        sop_instance_uid=_uid("instance", source, inputs_digest),
        instance_number=1,
        manufacturer="lungseg",
        manufacturer_model_name="lungseg",
        software_versions=__version__,
        device_serial_number=model,
        pixel_measures=_measures(source),
        content_label="LUNGS" if is_lungs else "CHEST",
        content_description=f"{'Lungs' if is_lungs else 'Structures'} by a neural network",
    )
    segmentation.SeriesDescription = f"{'Lungs' if is_lungs else 'Structures'} by lungseg, not for diagnosis"
    _make_deterministic(segmentation, source, inputs_digest)
    stream = io.BytesIO()
    segmentation.save_as(stream)
    return stream.getvalue()


def _segment(number: int, name: str, model: str) -> "highdicom.seg.SegmentDescription":
    import highdicom
    from highdicom.sr.coding import CodedConcept

    category, kind = (CodedConcept(*code) for code in property_of(name))
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=kind.meaning,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="lungseg",
            version=f"{__version__} {model}",
            family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
    )


def _measures(source: "Dataset") -> "highdicom.PixelMeasuresSequence":
    """Return the pixel spacing in mm, from the same element as the areas in cm2; 1 without a valid one."""
    import highdicom

    spacing = pixel_spacing(source) or [_NO_SPACING] * 2
    return highdicom.PixelMeasuresSequence(pixel_spacing=spacing, slice_thickness=_NO_SPACING)


def _add_missing_elements(source: "Dataset") -> None:
    """Add missing elements, empty, that a segmentation copies from its source."""
    for name in (*_COPIED, "ReferringPhysicianName"):
        if name not in source and name != "IssuerOfPatientID":  # the standard requires no issuer
            setattr(source, name, "")


def _make_deterministic(segmentation: "Dataset", source: "Dataset", inputs_digest: str) -> None:
    """Replace current times by the study's and random UIDs by derived ones, so equal calls give equal bytes."""
    date, time = source.get("StudyDate") or "19700101", source.get("StudyTime") or "000000"
    for name in ("Content", "InstanceCreation", "Series"):
        setattr(segmentation, f"{name}Date", date)
        setattr(segmentation, f"{name}Time", time)
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = f"{date}{time}"
    organization = _uid("organization", source, inputs_digest)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    segmentation.PatientOrientation = source.get("PatientOrientation") or ""


def _uid(kind: str, source: "Dataset", inputs_digest: str) -> str:
    """Derive a UID from the radiograph and the inputs digest. Source: DICOM PS3.5 B.2."""
    series = source.get("SeriesInstanceUID", "") if kind == "series" else source.get("SOPInstanceUID", "")
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'lungseg {kind} {series} {inputs_digest}').int}"
