"""Record in segment.json which images an output folder has results of, so that a folder never mixes two commands."""

from collections.abc import Iterable, Sequence

from pydantic import Field

from lungseg import storage
from lungseg.config.segment import SEGMENT_FORMATS, SegmentSettings
from lungseg.errors import InputError
from lungseg.segment_command.inputs import RUN_FILE, GivenImage
from lungseg.segment_command.outputs import Outputs, output_paths
from lungseg.segment_command.tables import TABLES
from lungseg.storage.json_files import JsonFields

WORK = ".working"
"""Folder below the output folder for what an interrupted command needs again; hidden, so never read as X-rays."""


class OutputRecord(JsonFields):
    """What an earlier command wrote to the folder: images by label, and the paths of files below the folder."""

    images: list[str] = Field(default_factory=list)
    files: list[str] = Field(default_factory=list)


def read_record(out: str) -> OutputRecord:
    """Read what an earlier command wrote to the output folder; nothing for a new one.

    Raises:
        InputError: it is a file, or the folder has results of another origin.

    """
    if storage.try_stat(out) is not None:
        raise InputError(f"-o {out}: a file, expected a folder: pass another name")
    path = storage.join(out, RUN_FILE)
    if storage.try_stat(path) is not None:
        return OutputRecord(**storage.read_json(path, fields=OutputRecord))
    occupied = next((name for name in (*SEGMENT_FORMATS, *TABLES) if storage.exists(storage.join(out, name))), "")
    if occupied:
        raise InputError(f"{out} has {occupied}, but no {RUN_FILE}: pass another -o, or move it away")
    return OutputRecord()


def reserve_output(outputs: Outputs, earlier: OutputRecord, images: Sequence[GivenImage]) -> None:
    """Record the images and every file that may be written, before the first one is.

    Raises:
        InputError: the folder has results of other images.

    """
    others = sorted(set(earlier.images) - {image.label for image in images})
    if others:
        raise InputError(
            f"{outputs.out} has results of other X-rays (first: {others[0]}): pass another -o, or all X-rays at once"
        )
    _write(outputs.out, images, {*earlier.files, *_planned(images, outputs)}, outputs.settings)


def finish_output(
    outputs: Outputs, earlier: OutputRecord, images: Sequence[GivenImage], written: Iterable[str]
) -> None:
    """Delete files of an earlier command that were not written again, and record those that were."""
    kept = set(written)
    for path in sorted({*earlier.files, *_planned(images, outputs)} - kept):
        storage.delete(storage.join(outputs.out, path))
    _write(outputs.out, images, kept, outputs.settings)


def _planned(images: Sequence[GivenImage], outputs: Outputs) -> list[str]:
    kinds, classes = outputs.settings.formats, outputs.classes
    return [path for image in images for kind in kinds for path in output_paths(kind, image.name, classes).values()]


def _write(out: str, images: Sequence[GivenImage], files: Iterable[str], settings: SegmentSettings) -> None:
    content = {
        "model": settings.model,
        "formats": list(settings.formats),
        "images": [image.label for image in images],
        "files": sorted(files),
    }
    storage.write_json(storage.join(out, RUN_FILE), content)
