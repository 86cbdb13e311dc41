"""Damaged images end as rows with a reason: never a traceback, a crash, a hang, or more memory than stated."""

from pathlib import Path

import pytest

from tests.fuzz.image_kinds import KINDS
from tests.fuzz.runner import first_of_today, problems

_SHARES = {"png": 1100, "jpg": 900, "tif": 1200, "webp": 500, "bmp": 500, "gif": 400, "jp2": 500, "mask": 700}
_SHARES["dicom"] = 2400  # the most elements, and seven decoders


def _counts(divisor: int) -> dict[str, int]:
    return {f"image_kinds.{kind.name}": max(1, _SHARES[kind.name] // divisor) for kind in KINDS}


def test_damaged_images_are_rows_with_a_reason(tmp_path: Path) -> None:
    assert problems(tmp_path, _counts(divisor=80)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_damaged_images_are_rows_with_a_reason(tmp_path: Path) -> None:
    counts = _counts(divisor=1)
    assert sum(counts.values()) == 8200
    assert problems(tmp_path, counts, first_of_today()) == []
