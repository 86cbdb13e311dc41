"""Segment a few X-rays in this process, without Ray, and write the files of each as soon as it is segmented."""

import gc
import logging
from collections.abc import Sequence

from lungseg.arrays import Row
from lungseg.inference.items import Item
from lungseg.inference.segmenter import Segmenter, SegmenterSettings
from lungseg.ingest.pseudonyms import read_key
from lungseg.progress import ProgressLine
from lungseg.segment_command.inputs import GivenImage
from lungseg.segment_command.outputs import Outputs

logger = logging.getLogger(__name__)

_BATCH = 4  # images: larger ones are no faster on a CPU, and show the first result later


def segment_few(images: Sequence[GivenImage], model: str, outputs: Outputs) -> list[Row]:
    """Segment images and write their files; return the rows in the order of the images."""
    settings = SegmenterSettings(backend=outputs.settings.backend, batch_size=_BATCH, key=read_key(""), few_images=True)
    segmenter = Segmenter([model], settings)
    gc.freeze()  # a collection then leaves out the million objects of torch, timm and smp
    results = segmenter.segment(Item(image.record) for image in images)
    progress, rows = ProgressLine(logger), []
    for image, result in zip(images, results, strict=True):
        mask = None if result.upright_mask is None else result.mask
        rows.append(outputs.write(image, result.row, mask, result.image))
        if len(images) > 1:
            progress.update(f"{len(rows)} of {len(images)} images", len(rows) / len(images))
    progress.close()
    return rows
