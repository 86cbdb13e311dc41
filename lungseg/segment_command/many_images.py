"""Segment many X-rays with the pipeline of `lungseg infer`, which divides them among processes and resumes."""

from collections.abc import Iterator, Sequence

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import Backend, InferSettings
from lungseg.inference.inputs import stat_files
from lungseg.inference.model_selection import find_models
from lungseg.model.checkpoint import ensemble_digest
from lungseg.predictions.parts import part_files, read_part
from lungseg.schema import MANIFEST, table
from lungseg.segment_command.inputs import GivenImage

_PART = 16  # images: with larger parts, the first progress of a hundred images comes late


def segment_many(
    images: Sequence[GivenImage], model: str, work: str, backend: Backend
) -> Iterator[tuple[GivenImage, Row]]:
    """Segment images, and yield each with its row of PREDICTIONS.

    work: folder for the rows of an interrupted command, which the same command uses again.
    """
    # Imported only here: Ray takes seconds, and a few images need none.
    from lungseg.pipelines.infer import predict

    folder = storage.join(work, _digest(images, model, backend))
    for other in storage.list_folders(work):
        if storage.name_of(other) not in (storage.name_of(folder), "unpacked"):
            storage.delete(other)
    listed = storage.join(folder, "images.parquet")
    storage.write_table(listed, table([image.record.to_dict() for image in images], MANIFEST))
    predictions = storage.join(folder, "predictions")
    predict(InferSettings(archive=listed, checkpoint=(model,), out=predictions, part_size=_PART, backend=backend))
    by_uri = {image.record.image_uri: image for image in images}
    for path in part_files(predictions):
        for row in read_part(path).to_pylist():
            image = by_uri[row["source_uri"]]
            yield image, _with_problem(image, row)


def _with_problem(image: GivenImage, row: Row) -> Row:
    """Restore why a member of a zip archive could not be unpacked; the pipeline finds only that it is missing."""
    if image.record.usable:
        return row
    record = image.record
    return {**row, "status": record.status, "codes": list(record.codes), "message": record.message}


def _digest(images: Sequence[GivenImage], model: str, backend: Backend) -> str:
    """Return a digest of the images as they are now and of the model: another one starts anew."""
    uris = {image.record.image_uri for image in images}
    stats = sorted(stat_files(uris, storage.parent_of(min(uris))).items())
    return storage.digest([ensemble_digest(find_models([model])), backend, [image.name for image in images], stats])
