"""A lung mask as a DICOM Segmentation that belongs to the radiograph's own study."""

import hashlib
import io
import uuid
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lungseg import __version__
from lungseg.errors import InputError
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.imaging.dicom.tags import element_numbers

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

U8 = NDArray[np.uint8]

_NO_SPACING = 1.0  # mm, where the radiograph tells none: the object must have one, and is drawn by pixels anyway
_CODES = {"right": ("3341006", "Right lung"), "left": ("44029006", "Left lung")}  # SNOMED CT
_NEEDED = ("Rows", "Columns", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PERSON = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_TAKEN_OVER = (*_PERSON, "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")


def encode_segmentation(content: bytes, masks: dict[str, U8], model: str, display_name: str) -> bytes:
    """Make a binary segmentation of a radiograph's lungs, to lie in its study and refer to it.

    content: the radiograph's file. masks: u8[H,W] in {0,1} at its size by name, `right` and `left`; empty ones are left
    out. model: digest of the weights, as the algorithm's version. The object's UIDs hang on these alone, so the same
    call makes the same object, but for its times, which are the radiograph's. Unlike all else that is written here it
    names the patient, as the radiograph does.

    Raises:
        InputError: the file is no DICOM image of that size, or both masks are empty.

    """
    import pydicom

    if not is_dicom(content):
        raise InputError(f"{display_name} is no DICOM file: DICOM segmentations are for DICOM images")
    chosen = {side: mask for side, mask in masks.items() if mask.any()}
    if not chosen:
        raise InputError(f"{display_name} has an empty mask: a DICOM segmentation needs a lung")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom remarks on values of the source that are not quite the standard's
        source = pydicom.dcmread(io.BytesIO(content), force=True)
        missing = [name for name in _NEEDED if not source.get(name)]
        if missing:
            raise InputError(f"{display_name} lacks {missing[0]}, which ties a segmentation to it: export it again")
        shape = (source.get("Rows"), source.get("Columns"))
        if shape != next(iter(chosen.values())).shape:
            raise InputError(f"{display_name} is {shape[0]}x{shape[1]}, its mask is of another size: it was changed")
        try:
            return _build(source, chosen, model)
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # whatever else its elements may hold
            first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{display_name}: no segmentation can be made of it ({first}): export it again") from None


def _build(source: "Dataset", masks: dict[str, U8], model: str) -> bytes:
    import highdicom

    _complete(source)
    pixels = np.stack(list(masks.values()), axis=-1)[None].astype(np.uint8)
    made_of = f"{model} {hashlib.sha256(np.packbits(pixels).tobytes()).hexdigest()}"
    made = highdicom.seg.Segmentation(
        source_images=[source],
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, side, model) for number, side in enumerate(masks, start=1)],
        series_instance_uid=_uid("series", source, model),
        series_number=100,
        sop_instance_uid=_uid("instance", source, made_of),
        instance_number=1,
        manufacturer="lungseg",
        manufacturer_model_name="lungseg",
        software_versions=__version__,
        device_serial_number=model,
        pixel_measures=_measures(source),
        content_label="LUNGS",
        content_description="Lungs by a neural network",
    )
    _settle(made, source, made_of)
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


def _segment(number: int, side: str, model: str) -> "highdicom.seg.SegmentDescription":
    import highdicom
    from highdicom.sr.coding import CodedConcept

    value, meaning = _CODES[side]
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=meaning,
        segmented_property_category=CodedConcept("91723000", "SCT", "Anatomical Structure"),
        segmented_property_type=CodedConcept(value, "SCT", meaning),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="lungseg",
            version=f"{__version__} {model}",
            family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
    )


def _measures(source: "Dataset") -> "highdicom.PixelMeasuresSequence":
    """Say how large a pixel is, in mm; 1 where the radiograph tells nothing that could be."""
    import highdicom

    found = element_numbers(source, "ImagerPixelSpacing") or element_numbers(source, "PixelSpacing")
    spacing = found if len(found) == 2 and min(found) > 0 else [_NO_SPACING] * 2
    return highdicom.PixelMeasuresSequence(pixel_spacing=spacing, slice_thickness=_NO_SPACING)


def _complete(source: "Dataset") -> None:
    """Fill in what a segmentation takes over from its source, where that lacks it."""
    for name in _TAKEN_OVER:
        if name not in source:
            setattr(source, name, "")


def _settle(made: "Dataset", source: "Dataset", made_of: str) -> None:
    """Put the study's times for those of the call and UIDs of ours for random ones: the same call, the same bytes."""
    date, time = source.get("StudyDate") or "19700101", source.get("StudyTime") or "000000"
    for name in ("Content", "InstanceCreation", "Series"):
        setattr(made, f"{name}Date", date)
        setattr(made, f"{name}Time", time)
    for one in made.get("ContributingEquipmentSequence", ()):
        one.ContributionDateTime = f"{date}{time}"
    organization = _uid("organization", source, made_of)
    for one in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        one.DimensionOrganizationUID = organization
    made.PatientOrientation = source.get("PatientOrientation") or ""


def _uid(kind: str, source: "Dataset", made_of: str) -> str:
    """Make a UID that hangs on the radiograph and on what the object is made of. Source: DICOM PS3.5 B.2."""
    series = source.get("SeriesInstanceUID", "") if kind == "series" else source.get("SOPInstanceUID", "")
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'lungseg {kind} {series} {made_of}').int}"
