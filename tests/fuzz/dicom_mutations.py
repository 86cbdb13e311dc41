"""Change the elements of DICOM files: values, VRs, lengths, sequences, transfer syntaxes, fragments of pixels."""

import functools
import io
import struct
import zlib
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.fuzz.byte_mutations import Mutation, integer, mutate, mutate_bytes
from tests.fuzz.image_seeds import draw, encoded
from tests.imaging.dicom.dicom_files import coded, lut, saved, write_dicom

PATIENT = "Quasimodo"
"""Patient id and name in every seed: it must be in no message."""
_LONG = frozenset((b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"))
_VRS = (*(b"US SS UL SL FL FD DS IS CS LO SH PN DA TM UI AS AT OB OW SQ UN UT LT DT ZZ".split()), b"\0\0")
_NUMBERS = ("nan", "inf", "-inf", "0", "-1", "1", "1e308", "1e-308", "-1e308", "", " ", "abc", "1\\2", "\\", "1,5")
_TEXTS = (*_NUMBERS, "0x10", "9" * 400, "3", "1e5", "CHEST", "LATERAL", "\xff\xfe", "a" * 70000, "\0", "1\\nan\\x")
_SHORTS = (0, 1, 2, 3, 7, 8, 9, 10, 12, 15, 16, 17, 24, 32, 64, 255, 256, 4096, 32767, 32768, 65535)
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
_CODINGS = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "9.9", "")
_CODINGS += tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 100, 201, 202, 203))
_CODINGS += ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.7.1", "x" * 300)


@dataclass(frozen=True)
class Element:
    """An element in explicit VR little endian; `length` replaces the true one in the file."""

    tag: bytes
    vr: bytes
    value: bytes
    length: int | None = None

    def encode(self) -> bytes:
        length = len(self.value) if self.length is None else self.length
        if self.vr in _LONG:
            return self.tag + self.vr + b"\0\0" + struct.pack("<I", length % (1 << 32)) + self.value
        return self.tag + self.vr + struct.pack("<H", length % 65536) + self.value


def split(content: bytes) -> list[Element]:
    """Split a file in explicit VR little endian; pixels of undefined length are the last element."""
    found, start = [], 132
    while start < len(content):
        tag, vr = content[start : start + 4], content[start + 4 : start + 6]
        if vr in _LONG:
            (length,) = struct.unpack_from("<I", content, start + 8)
            head = 12
        else:
            (length,) = struct.unpack_from("<H", content, start + 6)
            head = 8
        end = len(content) if length == _UNDEFINED else start + head + length
        found.append(Element(tag, vr, content[start + head : end], length if length == _UNDEFINED else None))
        start = end
    return found


def join(elements: list[Element]) -> bytes:
    """Write a file with a preamble."""
    return bytes(128) + b"DICM" + b"".join(element.encode() for element in elements)


def _value(random: Random, vr: bytes) -> bytes:
    """Make a value that this VR may have, but code does not expect."""
    if vr in (b"US", b"SS"):
        return b"".join(struct.pack("<H", random.choice(_SHORTS)) for _ in range(random.choice((0, 1, 1, 1, 2, 3))))
    if vr in (b"UL", b"SL"):
        return struct.pack("<I", integer(random) % (1 << 32))
    if vr in (b"FL", b"FD"):
        number = random.choice((0.0, float("nan"), float("inf"), 1e300, -1.0))
        return struct.pack("<d", number) if vr == b"FD" else struct.pack("<f", min(number, 1e30))
    if vr == b"SQ":
        return random.choice((b"", _ITEM + bytes(4), nested(random.choice((1, 3, 200, 3000)))))
    text = random.choice(_TEXTS).encode("latin-1")
    return text + b" " * (len(text) % 2) if random.random() < 0.8 else text


def nested(depth: int) -> bytes:
    """Nest sequences of undefined length, one item each."""
    start = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + _ITEM + b"\xff\xff\xff\xff"
    end = _ITEM_END + bytes(4) + _SEQUENCE_END + bytes(4)
    return _ITEM + b"\xff\xff\xff\xff" + start * depth + end * depth + _ITEM_END + bytes(4)


def set_value(content: bytes, random: Random) -> bytes:
    """Replace the value of one element by an unusual one of its VR."""
    elements, place = _pick(content, random)
    element = elements[place]
    elements[place] = replace(element, value=_value(random, element.vr), length=None)
    return join(elements)


def set_vr(content: bytes, random: Random) -> bytes:
    """Replace the VR of one element, with its own value or one of the new VR."""
    elements, place = _pick(content, random)
    vr = random.choice(_VRS)
    value = random.choice((elements[place].value, _value(random, vr)))
    elements[place] = replace(elements[place], vr=vr, value=value[:60000], length=None)
    return join(elements)


def set_length(content: bytes, random: Random) -> bytes:
    """State a wrong length, or an undefined one."""
    elements, place = _pick(content, random)
    true = len(elements[place].value)
    length = random.choice((0, 1, true - 1, true + 1, true + 2, 65535, _UNDEFINED, integer(random)))
    elements[place] = replace(elements[place], length=max(0, length))
    return join(elements)


def move_element(content: bytes, random: Random) -> bytes:
    """Remove an element, repeat it, move it, or give it the tag of another one."""
    elements, place = _pick(content, random)
    element = elements.pop(place)
    kind = random.randrange(4)
    if kind:
        other = replace(element, tag=random.choice(elements).tag)
        elements.insert(random.randrange(len(elements) + 1), other if kind == 1 else element)
    if kind == 2:
        elements.insert(place, element)
    return join(elements)


def set_coding(content: bytes, random: Random) -> bytes:
    """Name another transfer syntax than that of the pixels."""
    elements = split(content)
    place = next(i for i, element in enumerate(elements) if element.tag == b"\x02\0\x10\0")
    coding = random.choice(_CODINGS).encode()
    elements[place] = replace(elements[place], value=coding + b"\0" * (len(coding) % 2))
    return join(elements)


def change_pixels(content: bytes, random: Random) -> bytes:
    """Change the pixel data: its offset table, its fragments and their content."""
    elements = split(content)
    element = elements[-1]
    elements[-1] = replace(element, value=mutate_bytes(element.value, random))
    return join(elements)


def set_layout(content: bytes, random: Random) -> bytes:
    """Change one of the numbers that describe the pixels."""
    elements = split(content)
    places = [i for i, element in enumerate(elements) if element.tag[:2] == b"\x28\0" and element.vr == b"US"]
    place = random.choice(places)
    elements[place] = replace(elements[place], value=struct.pack("<H", random.choice(_SHORTS)))
    return join(elements)


def add_element(content: bytes, random: Random) -> bytes:
    """Insert an element that rendering or layout reads."""
    tags = (0x00280008, 0x00280006, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00283000, 0x00283010, 0x00280120)
    tags += (0x00280121, 0x00281056, 0x00281101, 0x00281201, 0x00080005, 0x00280301, 0x7FE00001, 0x7FE00008, 0x00280002)
    tag = random.choice(tags)
    vr = random.choice(_VRS[:-1])
    added = Element(struct.pack("<HH", tag >> 16, tag & 65535), vr, _value(random, vr))
    elements = split(content)
    return join(sorted([*elements, added], key=lambda one: struct.unpack("<HH", one.tag)))


def _pick(content: bytes, random: Random) -> tuple[list[Element], int]:
    elements = split(content)
    return elements, random.randrange(len(elements))


EXPLICIT: tuple[Mutation, ...] = (
    *(set_value, set_value, set_value, set_vr, set_vr, set_length, move_element, set_coding, change_pixels),
    *(set_layout, set_layout, add_element, add_element, mutate_bytes),
)


def mutate_dicom(random: Random) -> bytes:
    """Choose a valid file and change it."""
    name = random.choice([*seeds()])
    seed = seeds()[name]
    if name in ("implicit", "big endian"):
        return mutate(seed, random, (mutate_bytes,))
    if name == "deflated":
        return mutate(seed, random, (_change_deflated, _change_deflated, _change_deflated, mutate_bytes))
    return mutate(seed, random, EXPLICIT)


def _change_deflated(content: bytes, random: Random) -> bytes:
    """Change the elements before they are deflated; a second change is one of bytes."""
    if content != seeds()["deflated"]:
        return mutate_bytes(content, random)
    return deflated(random.choice(EXPLICIT)(seeds()["explicit"], random))


def deflated(content: bytes) -> bytes:
    """Deflate everything after the file meta information."""
    elements = split(content)
    meta = [element for element in elements if element.tag[:2] == b"\x02\0"]
    coding = DeflatedExplicitVRLittleEndian.encode()
    meta = [replace(one, value=coding) if one.tag == b"\x02\0\x10\0" else one for one in meta]
    body = b"".join(element.encode() for element in elements if element.tag[:2] != b"\x02\0")
    compressor = zlib.compressobj(wbits=-15)
    return join(meta) + compressor.compress(body) + compressor.flush()


def _tags() -> dict[str, Any]:
    region, view = Dataset(), Dataset()
    region.CodeValue, region.CodeMeaning = "T-D3000", "Chest"
    view.CodeValue, view.CodeMeaning = "R-10206", "antero-posterior"
    return {
        "PatientID": PATIENT,
        "PatientName": PATIENT,
        "PatientAge": "045Y",
        "PatientBirthDate": "19700101",
        "StudyDate": "20200202",
        "PatientSex": "F",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "PixelSpacing": [0.2, 0.2],
        "ImagerPixelSpacing": [0.2, 0.2],
        "ManufacturerModelName": "Model",
        "NumberOfFrames": 1,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.4",
        "SOPInstanceUID": "1.2.5",
        "AnatomicRegionSequence": Sequence([region]),
        "ViewCodeSequence": Sequence([view]),
    }


def _as(content: bytes, coding: str) -> bytes:
    source = dcmread(io.BytesIO(content))
    dataset = Dataset(source)  # without the encoding of the source, which pydicom does not convert
    dataset.file_meta = source.file_meta
    dataset.file_meta.TransferSyntaxUID = coding
    return saved(dataset)


@functools.cache
def seeds() -> dict[str, bytes]:
    """Return valid files by name; all but `implicit` and `big endian` are in explicit VR little endian."""
    image = draw()[0]
    deep = image.astype(np.uint16) * 16
    tags = _tags()
    window = {"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": "LINEAR"}
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -100, "PixelPaddingValue": 0}
    explicit = write_dicom(deep, **tags, **window, **rescale, BitsStored=12)
    entries = np.linspace(0, 65535, 4096).astype(np.uint16)
    tables = {name: Sequence([lut(entries, 0, 16)]) for name in ("ModalityLUTSequence", "VOILUTSequence")}
    jpeg = dcmread(io.BytesIO(write_dicom(image, **tags)))
    return {
        "explicit": explicit,
        "tables": write_dicom(deep, **tags, **tables, BitsStored=12),
        "colour": write_dicom(np.dstack([image] * 3), **tags),
        "palette": _palette(image, tags),
        "deflated": deflated(explicit),
        "implicit": _as(explicit, ImplicitVRLittleEndian),
        "big endian": _as(write_dicom(image, **tags, **window), ExplicitVRBigEndian),
        **{coding.name: coded(explicit, coding) for coding in (RLELossless, JPEGLSLossless, JPEG2000Lossless)},
        "jpeg": _encapsulated(jpeg, encoded("jpg", image), JPEGBaseline8Bit),
    }


def _palette(image: np.ndarray[Any, Any], tags: dict[str, Any]) -> bytes:
    colours = ("Red", "Green", "Blue")
    entries = (np.arange(256) * 257).astype("<u2").tobytes()
    tables = {f"{colour}PaletteColorLookupTableData": entries for colour in colours}
    descriptors = {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 16] for colour in colours}
    return write_dicom(image, **tags, **descriptors, **tables, PhotometricInterpretation="PALETTE COLOR")


def _encapsulated(dataset: Dataset, frame: bytes, coding: str) -> bytes:
    from pydicom.encaps import encapsulate

    stream = io.BytesIO()
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = coding
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
