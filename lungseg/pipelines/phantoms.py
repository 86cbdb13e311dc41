"""Draw an archive of synthetic images (phantoms) for a job without data."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError
from lungseg.imaging import phantom
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_PROGRESS_STEPS = 20


def draw_phantoms(out: str, per_style: int, classes: Sequence[str] = ONE_CLASS) -> str:
    """Draw the missing phantoms of the archive `out/phantoms`, with masks of the classes; return its folder.

    Raises:
        InputError: the folder is in a bucket, or cannot be written.

    """
    archive = storage.join(out, "phantoms")
    if "://" in archive:
        raise InputError(
            f"{archive}: phantoms can only be written to a local disk: pass a local --out, or name your own data"
        )
    logger.info(
        "no data named: drawing %d phantoms in each of %d scanner styles into %s",
        per_style,
        len(phantom.STYLES),
        archive,
    )
    line, step = ProgressLine(logger), max(1, per_style // _PROGRESS_STEPS)
    for count in range(step, per_style + step, step):
        try:
            phantom.write_archive(Path(archive), min(count, per_style), classes=classes)  # keeps existing files
        except OSError as error:
            raise InputError(f"{archive}: cannot be written ({error.strerror}): pass another --out") from error
        line.update(f"{min(count, per_style)} of {per_style} phantoms drawn in each style")
    return archive
