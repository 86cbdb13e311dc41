"""Draw an archive of phantoms where no data is named, and show how far it is."""

import logging
from pathlib import Path

from lungseg import storage
from lungseg.errors import InputError
from lungseg.imaging import phantom
from lungseg.progress import ProgressLine

logger = logging.getLogger(__name__)

_LOOKS = 20  # how often progress is shown


def draw_phantoms(out: str, per_style: int) -> str:
    """Draw an archive below a folder, or what is left of it to draw; return the archive's folder.

    Raises:
        InputError: the folder is in a bucket, or cannot be written.

    """
    archive = storage.join(out, "phantoms")
    if "://" in archive:
        raise InputError(f"{archive}: phantoms are drawn to a disk: pass a local --out, or name your own data")
    logger.info(
        "no data named: drawing %d phantoms in each of %d scanner styles in %s", per_style, len(phantom.STYLES), archive
    )
    line, step = ProgressLine(logger), max(1, per_style // _LOOKS)
    for count in range(step, per_style + step, step):
        try:
            phantom.write_archive(Path(archive), min(count, per_style))  # pairs that are there are left alone
        except OSError as error:
            raise InputError(f"{archive}: cannot be written ({error.strerror}): pass another --out") from error
        line.update(f"drew {min(count, per_style)} of {per_style} phantoms in each style")
    return archive
