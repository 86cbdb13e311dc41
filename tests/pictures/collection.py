"""Pictures that are no upright frontal chest, by kind, from files and from functions; none was used for training."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import data_store
import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from lungseg.errors import ImageError
from lungseg.imaging import phantom
from lungseg.ingest import image_checks
from tests.pictures import altered
from tests.pictures.anatomy import ANATOMY
from tests.pictures.drawn import DRAWN
from tests.pictures.fields import U8, Floats

_SEED = 20261129  # other than the seeds of training
_NO_IMAGE = (".py", ".pyc", ".json", ".txt", ".md")

ALTERED = {
    "turned by 90 degrees": lambda rng, image: np.rot90(image),
    "turned by 270 degrees": lambda rng, image: np.rot90(image, 3),
    "turned by 180 degrees": lambda rng, image: np.rot90(image, 2),
    "mirrored top to bottom": lambda rng, image: image[::-1],
    "turned roughly, with borders": altered.on_side,
    "upside down, altered": altered.upside_down,
    "a quarter": lambda rng, image: _quarter(image, int(rng.integers(4))),
    "a quarter or a half, altered": altered.fragment,
    "shown in a page": altered.shown_in_a_page,
    "side by side": altered.side_by_side,
    "thresholded": altered.threshold,
}
"""Functions of a random generator and an X-ray, by kind of picture."""


def finding(image: U8) -> str:
    """Return the flag or the reason code of an image; empty if there is none."""
    try:
        _, _, flags = image_checks.check_pixels(image, "x.png")
    except ImageError as error:
        return str(error.code)
    return ", ".join(flag.code for flag in flags)


def read_xrays(folder: Path) -> list[U8]:
    """Read the X-rays of a folder in the order of their names."""
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*.png"))]
    return [np.asarray(image, np.uint8) for image in images if image is not None]


def phantoms(count: int) -> list[U8]:
    """Draw X-rays of 256 px."""
    return [phantom.draw((_SEED, number), phantom.STYLES[number % 2], 256)[0] for number in range(count)]


def altered_xrays(images: list[U8]) -> dict[str, list[U8]]:
    """Make one picture of each kind from each X-ray."""
    return {
        kind: [np.ascontiguousarray(alter(np.random.default_rng((_SEED, n)), image)) for n, image in enumerate(images)]
        for kind, alter in ALTERED.items()
    }


def drawn_pictures(each: int) -> dict[str, list[U8]]:
    """Draw `each` pictures with each function."""
    return {
        kind: [draw(np.random.default_rng((_SEED, n)), 128) for draw in draws.values() for n in range(each)]
        for kinds in (DRAWN, ANATOMY)
        for kind, draws in kinds.items()
    }


def pydicom_pictures() -> dict[str, U8]:
    """Decode the pictures of 32 px or more in the files of pydicom and pydicom-data, without reading their tags' words.

    Of several frames, the first; of colour, the second channel; equal pictures once. `RG1` is a chest X-ray.
    """
    folders = [Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix not in _NO_IMAGE)
    pictures: dict[bytes, tuple[str, U8]] = {}
    for path in files:
        for picture in _decoded(path):
            small = cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA)
            pictures.setdefault((small // 16).tobytes(), (path.name, picture))
    return dict(pictures.values())


def _decoded(path: Path) -> Iterator[U8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            pixels = pixel_array(dataset, index=0)
    except Exception:  # a folder, a file without pixels, or one that is damaged on purpose
        return
    if dataset.SamplesPerPixel == 3:
        pixels = pixels[..., 1]
    frame = np.asarray(pixels, np.float64)
    low, high = np.percentile(frame, (0.5, 99.5))
    if min(frame.shape) < 32 or high <= low:
        return
    grey = _scaled(frame, float(low), float(high))
    yield 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _scaled(frame: Floats, low: float, high: float) -> U8:
    return np.asarray(np.clip((frame - low) * (255 / (high - low)), 0, 255), np.uint8)


def _quarter(image: U8, number: int) -> U8:
    half = (image.shape[0] // 2, image.shape[1] // 2)
    rows, columns = (
        slice(None, half[axis]) if part else slice(half[axis], None) for axis, part in enumerate(divmod(number, 2))
    )
    return image[rows, columns]
