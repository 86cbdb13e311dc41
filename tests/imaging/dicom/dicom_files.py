"""Write DICOM files with chosen pixels, tags and transfer syntax for tests."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

UID = "1.2.826.0.1.3680043.8.498.1"


def write_dicom(pixels: NDArray[Any], **tags: Any) -> bytes:
    """Write u8, u16 or i16 [H,W], or u8[H,W,3], as an uncompressed CR; tags set to None are omitted."""
    colour = pixels.ndim == 3
    values = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": UID,
        "Modality": "CR",
        "PatientName": "Doe^Jane",
        "PatientID": "P-1",
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": pixels.itemsize * 8,
        "BitsStored": pixels.itemsize * 8,
        "HighBit": tags.get("BitsStored", pixels.itemsize * 8) - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        **({"PlanarConfiguration": 0} if colour else {}),
        **tags,
    }
    dataset = Dataset()
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    cells = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if "PixelData" not in tags:
        dataset.PixelData = cells + b"\0" * (len(cells) % 2)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    return saved(dataset)


def lut(entries: NDArray[Any], first: int, bits: int) -> Dataset:
    """Make an item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [entries.size % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def coded(content: bytes, coding: str, **options: Any) -> bytes:
    """Recompress the same image: RLE, JPEG-LS or JPEG 2000."""
    dataset = dcmread(io.BytesIO(content))
    dataset.compress(coding, generate_instance_uid=False, **options)
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
