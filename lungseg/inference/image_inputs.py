"""Turn paths, bytes of files, arrays and Pillow images into items."""

import io
import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from lungseg import MAX_IMAGE_PIXELS, storage
from lungseg.errors import ImageError, SettingsError
from lungseg.inference.items import Item
from lungseg.ingest import file_names
from lungseg.ingest.reason_codes import Note, reject
from lungseg.schema import Record

if TYPE_CHECKING:
    from PIL.Image import Image

Polarity = Literal["bone-white", "bone-black"]
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | Image"

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # Pillow writes them to PNG unchanged
_ARRAY_MODES = ("I", "F", "I;16B", "I;16L")
_RGB = 3


def file_record(path: str) -> Record:
    """Return the record of one image file, with the id of its name and the dataset of its folder."""
    folder = storage.name_of(storage.parent_of(path))
    image_id = file_names.image_id(file_names.stem(storage.name_of(path)))
    patient = file_names.unnamed_patient(image_id, path)
    return Record(image_id, file_names.dataset_name(folder), path, patient_id=patient)


def open_input(image: ImageInput, polarity: Polarity, name: str) -> tuple[Item, bytes | None]:
    """Make an item of an image, with the bytes of its file; None for a path, which is not read here.

    polarity: of arrays and Pillow images. name: of an image without a file name.

    Raises:
        SettingsError: the polarity is unknown, or is passed for a file, which states its own.
        TypeError: not an image of a supported type.

    """
    if polarity not in get_args(Polarity):
        raise SettingsError(f"polarity {polarity!r}: expected {' or '.join(get_args(Polarity))}")
    is_file = isinstance(image, (str, os.PathLike, bytes))
    if is_file and polarity != "bone-white":
        raise SettingsError(f"polarity {polarity}: only for arrays and Pillow images; a file states its own")
    if isinstance(image, (str, os.PathLike)):
        return Item(_checked_record(storage.resolve(os.fspath(image)))), None
    record = Record(name, "", name)
    try:
        return Item(record), image if isinstance(image, bytes) else _encode_pixels(image, polarity, name)
    except ImageError as error:
        return Item(reject(record, Note(error.code, error.message))), None


def _checked_record(path: str) -> Record:
    record = file_record(path)
    if not os.path.isdir(path):
        return record
    return reject(record, Note("unreadable", f"{path} is a folder: pass a list of its files, or run `lungseg segment`"))


def _encode_pixels(image: "NDArray[Any] | Image", polarity: Polarity, name: str) -> bytes:
    """Encode an array or a Pillow image as PNG, so that it takes the path of a file.

    Raises:
        ImageError: `depth` or `too_large`: it cannot be an X-ray.
        TypeError: it is neither.

    """
    if isinstance(image, np.ndarray):
        return _encode_array(_to_pixels(image, name), polarity)
    if type(image).__module__.startswith("PIL."):
        return _encode_pillow(image, polarity, name)
    raise TypeError(
        f"{type(image).__name__} is no image: pass a path, the bytes of a file, a NumPy array, a Pillow image, or a "
        "list of them"
    )


def _to_pixels(array: NDArray[Any], name: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Convert an array to u8 or u16[H,W], or u8[H,W,3]; see docs/python.md for the ranges."""
    if array.ndim == _RGB and array.shape[2] == 1:
        array = array[:, :, 0]
    is_rgb = array.ndim == _RGB and array.shape[2] == _RGB and array.dtype == np.uint8
    if (array.ndim != 2 and not is_rgb) or array.size == 0:
        shape = "x".join(map(str, array.shape))
        raise ImageError("depth", f"{name} is {array.dtype}[{shape}]: pass a grey array [H,W], or 8-bit RGB [H,W,3]")
    if array.shape[0] * array.shape[1] > MAX_IMAGE_PIXELS:
        raise ImageError("too_large", f"{name} has {array.shape[0]}x{array.shape[1]} px: no radiograph is as large")
    if array.dtype.kind == "f":
        return _from_float(array, name)
    if array.dtype.kind not in "iu":
        raise ImageError("depth", f"{name} has values of type {array.dtype}: pass integers or floating-point numbers")
    if array.dtype == np.uint8:
        return array
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ImageError(
            "depth", f"{name} has values from {low} to {high}: pass integers from 0 to 65535, or floating-point numbers"
        )
    is_8_bit = array.dtype != np.uint16 and high <= np.iinfo(np.uint8).max
    return array.astype(np.uint8) if is_8_bit else array.astype(np.uint16)


def _from_float(array: NDArray[Any], name: str) -> NDArray[np.uint16]:
    """Map 0..1 to 0..65535; any other range from its minimum to its maximum."""
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("depth", f"{name} has values that are not finite numbers: replace them")
    if low < 0.0 or high > 1.0:
        array = (array - low) / ((high - low) or 1.0)
    scaled: NDArray[np.uint16] = np.rint(array * np.iinfo(np.uint16).max).astype(np.uint16)
    return scaled


def _encode_array(pixels: NDArray[Any], polarity: Polarity, exif: Any = None) -> bytes:
    from PIL import Image

    if polarity == "bone-black":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return _save(Image.fromarray(np.ascontiguousarray(pixels)), exif)


def _encode_pillow(image: "Image", polarity: Polarity, name: str) -> bytes:
    exif = image.getexif()  # its orientation, as in a file
    if image.mode in _ARRAY_MODES:
        return _encode_array(_to_pixels(np.asarray(image), name), polarity, exif)
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    if polarity == "bone-black":
        grey = image if image.mode in ("L", "I;16") else image.convert("L")
        return _encode_array(np.asarray(grey), polarity, exif)
    return _save(image, exif)


def _save(image: "Image", exif: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=0, **({"exif": exif} if exif else {}))
    return content.getvalue()
