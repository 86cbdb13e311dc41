"""Segment the named X-rays: a few in this process, many with the pipeline of `lungseg infer`."""

import contextlib
import functools
import importlib.util
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config.segment import SegmentSettings, default_formats
from lungseg.errors import InputError
from lungseg.imaging.dicom.segmentation import require_highdicom
from lungseg.ingest.lost_inputs import lost_inputs
from lungseg.job_end import end_job
from lungseg.model import sources
from lungseg.model.checkpoint import find_all
from lungseg.plurals import counted
from lungseg.predictions.ranking import highest_usual_doubt
from lungseg.progress import ProgressLine
from lungseg.segment_command.console import print_result
from lungseg.segment_command.few_images import segment_few
from lungseg.segment_command.inputs import GivenImage, list_images
from lungseg.segment_command.many_images import segment_many
from lungseg.segment_command.output_record import WORK, finish_output, read_record, reserve_output
from lungseg.segment_command.outputs import FILE_COLUMNS, Outputs, decode_mask, file_columns
from lungseg.segment_command.tables import by_doubt, has_mask, write_tables

logger = logging.getLogger(__name__)

FEW = 50
"""Images that this process segments alone; the processes for more take longer to start than a few images need."""

_SHOWN_REFUSALS = 5
_Written = tuple[GivenImage, Row]


def run(settings: SegmentSettings) -> None:
    """Segment X-rays, write their files and tables, and print those to look at first.

    Raises:
        LungsegError: a path, the model or the output folder cannot be used, no image could be segmented, or some were
            lost and the command is strict.

    """
    if "dicom-seg" in settings.formats:
        require_highdicom()
    out, model = storage.resolve(settings.out), sources.resolve(settings.model)
    _require_own_folder(settings, out)
    earlier = read_record(out)
    work = storage.join(out, WORK)
    classes = find_all(model)[0].preprocess.classes
    settings = settings.model_copy(update={"formats": settings.formats or default_formats(classes)})
    outputs = Outputs(out, settings, classes)
    with _unpack_folder(work) as unpacked:
        images = list_images(settings.paths, out, unpacked)
        reserve_output(outputs, earlier, images)
        with _explained_interruption(images, outputs):
            rows = _segment(images, model, work, outputs)
    rows = by_doubt(rows)
    columns = file_columns(settings, classes)
    write_tables(out, rows, classes, columns[len(FILE_COLUMNS) :])
    written = [row[column] for row in rows for column in columns if row[column]]
    finish_output(outputs, earlier, images, written)
    storage.delete(work)
    print_result(rows, out, settings.formats, classes)
    _end(settings, rows, outputs.refused)


def _segment(images: Sequence[GivenImage], model: str, work: str, outputs: Outputs) -> list[Row]:
    if len(images) <= FEW or importlib.util.find_spec("ray") is None:
        written = list(zip(images, segment_few(images, model, outputs), strict=True))
    else:
        segmented = segment_many(images, model, work, outputs.settings.backend)
        written = _in_threads(functools.partial(_write, outputs), segmented, "wrote the files", len(images))
    if "dicom-seg" in outputs.settings.formats:
        max_doubt = highest_usual_doubt([row["doubt"] for _, row in written])
        write = functools.partial(_write_segmentation, outputs, max_doubt)
        written = _in_threads(write, written, "wrote the DICOM segmentations", len(images))
    return [row for _, row in written]


def _in_threads(
    write: Callable[[_Written], _Written], items: Iterable[_Written], verb: str, total: int
) -> list[_Written]:
    """Write the files of images in threads, with a progress line."""
    progress, written = ProgressLine(logger), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, item in enumerate(pool.map(write, items), start=1):
            written.append(item)
            progress.update(f"{verb} of {number} of {total} images", number / total)
    progress.close()
    return written


def _write(outputs: Outputs, segmented: _Written) -> _Written:
    image, row = segmented
    return image, outputs.write(image, row, decode_mask(row))


def _write_segmentation(outputs: Outputs, max_doubt: float, written: _Written) -> _Written:
    image, row = written
    return image, outputs.write_segmentation(image, row, max_doubt)


@contextlib.contextmanager
def _explained_interruption(images: Sequence[GivenImage], outputs: Outputs) -> Iterator[None]:
    """Add to an interruption what was written, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        written = f"{outputs.out} has the files of {len(outputs.done)} of {counted(len(images), 'image')}, and no table"
        again = "continues" if len(images) > FEW else "segments all of them again"
        interruption.add_note(f"{written}; the same command {again}")
        raise


def _require_own_folder(settings: SegmentSettings, out: str) -> None:
    """Refuse an output folder that is an input.

    Raises:
        InputError: it is.

    """
    if out in map(storage.resolve, settings.paths):
        raise InputError(f"-o {settings.out} is one of the inputs: pass another folder, such as {settings.out}/lungs")


@contextlib.contextmanager
def _unpack_folder(work: str) -> Iterator[str]:
    """Give a temporary folder for members of zip archives: in the working folder, or on this disk for a bucket.

    In the working folder, it has the same path each time, so that an interrupted command continues.
    """
    if "://" in work:
        with tempfile.TemporaryDirectory(prefix="lungseg-") as folder:
            yield folder
        return
    folder = storage.join(work, "unpacked")
    try:
        yield folder
    finally:
        storage.delete(folder)
        with contextlib.suppress(OSError):  # it has the rows of an interrupted command
            os.rmdir(work)


def _end(settings: SegmentSettings, rows: Sequence[Row], refused: Sequence[str]) -> None:
    """Log what was lost.

    Raises:
        LungsegError: no image was segmented, or something was lost and the command is strict.

    """
    if "dicom-seg" in settings.formats and not refused and not any(row["dicom_seg_file"] for row in rows):
        logger.warning("no dicom-seg: none of the segmented images is a DICOM file")
    for line in refused[:_SHOWN_REFUSALS]:
        logger.warning("%s", line)
    if len(refused) > _SHOWN_REFUSALS:
        logger.warning("and %d more", len(refused) - _SHOWN_REFUSALS)
    if not any(map(has_mask, rows)):
        raise InputError("no image could be segmented: the table has the reasons")
    codes = Counter((row["status"], code) for row in rows for code in row["codes"])
    losses = lost_inputs(Counter(row["status"] for row in rows), ((*key, count) for key, count in codes.items()))
    losses["refused_exports"] = len(refused)
    end_job(losses, settings.strict)
