"""Read damaged images as inference and preparation do, and check what comes out."""

import functools
from random import Random

import numpy as np

from lungseg.config import PreprocessSettings
from lungseg.imaging.geometry import prepare_image
from lungseg.ingest import record_checks
from lungseg.ingest.reason_codes import REGISTRY
from lungseg.schema import STATUSES, USABLE, Record
from tests.fuzz.byte_mutations import mutate
from tests.fuzz.cases import Case, Kind, check_message
from tests.fuzz.dicom_mutations import PATIENT, mutate_dicom
from tests.fuzz.image_mutations import STRUCTURED
from tests.fuzz.image_seeds import choose, draw, encoded

_SETTINGS = PreprocessSettings(size=64)
_KEY = b"0" * 32


def _read(case: Case) -> None:
    """Open a damaged file as an image."""
    record = Record("damaged", "fuzz", f"/archive/{case.name}")
    opened, image, _ = record_checks.open_record(record, key=_KEY, read=lambda _: case.content)
    _check_record(opened)
    assert (image is not None) == opened.usable
    if image is not None:
        assert image.dtype in (np.uint8, np.uint16)
        shape = (opened.height, opened.width)  # of the stored pixels
        assert image.shape == (shape if opened.orientation < 5 else shape[::-1])
        square, _ = prepare_image(image, _SETTINGS)
        assert square.shape == (64, 64)


def _read_mask(case: Case) -> None:
    """Open a damaged file as the mask of an intact image."""
    content = {"/archive/intact.png": _intact(), f"/archive/{case.name}": case.content}
    record = Record("intact", "fuzz", "/archive/intact.png", (f"/archive/{case.name}",), ("lung",))
    opened, image, mask = record_checks.open_record(record, read=content.__getitem__)
    _check_record(opened)
    assert image is not None
    assert mask is None or (mask.shape == (1, *image.shape) and mask.max() == 1)


@functools.cache
def _intact() -> bytes:
    return encoded("png", draw()[0])


def _check_record(record: Record) -> None:
    """Check that a row explains itself: registered codes, a message for each problem, no patient."""
    assert record.status in STATUSES
    for code in record.codes:
        status = REGISTRY[code].status
        assert status == record.status or (record.status in ("rejected", "failed") and status == "repaired"), code
    assert all(REGISTRY[flag].status == "flag" for flag in record.flags)
    assert bool(record.codes) == (record.status != "ok")
    assert bool(record.message) == bool(record.codes)
    check_message(record.message)
    values = [value for name, value in record.to_dict().items() if name != "image_uri"]
    assert PATIENT not in str(values), "a value of the patient is in the row"
    assert record.status not in USABLE or (record.height > 0 and record.width > 0 and record.pixel_digest)


def _case(suffix: str, random: Random) -> Case:
    return Case(f"damaged.{suffix}", mutate(choose(suffix, random), random, STRUCTURED[suffix]))


def _mask_case(random: Random) -> Case:
    """Damage a mask; formats with masks in practice."""
    suffix = random.choice(("png", "png", "tif", "bmp", "gif"))
    if suffix != "png":
        return _case(suffix, random)
    mask = draw()[1] * np.uint8(255)
    seed = random.choice((encoded("png", mask), encoded("png", np.dstack([mask] * 4))))
    return Case("damaged.png", mutate(seed, random, STRUCTURED["png"]))


def _dicom_case(random: Random) -> Case:
    return Case("damaged.dcm", mutate_dicom(random))


KINDS = (
    *(Kind(suffix, functools.partial(_case, suffix), _read) for suffix in STRUCTURED),
    Kind("dicom", _dicom_case, _read),
    Kind("mask", _mask_case, _read_mask),
)
