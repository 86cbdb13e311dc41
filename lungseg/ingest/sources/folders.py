"""Any folder of images, with a folder of masks or without; what no other source knows ends here."""

import logging
from collections.abc import Sequence

from lungseg import storage
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import is_image, is_system_file, relative_path
from lungseg.ingest.sources import nlm
from lungseg.ingest.sources.mask_matching import DatasetFiles, group_by_dataset, match_masks, names_by_root
from lungseg.schema import Record

logger = logging.getLogger(__name__)


def recognise(folder: str, files: Sequence[str]) -> list[Record]:
    """Take every image, with its masks where `images` or `CXR_png` lies beside `masks`, `mask` or `ManualMask`.

    An image elsewhere is one without a mask. Masks that fit no image are warned of.

    Raises:
        InputError: masks lie beside images and not one fits.

    """
    found = group_by_dataset(folder, (uri for uri in files if is_image(uri)))
    titles = names_by_root(folder, found)
    return [
        record
        for root, part in found.items()
        for record in _join_aloud(part, titles.get(root, ""), storage.join(folder, root) if root else folder)
    ]


def pair_folders(images: str, masks: str, dataset: str) -> list[Record]:
    """List any folder of images with any folder of masks; a mask has its image's path, an ending _mask may follow.

    Raises:
        InputError: a folder is not there or empty, or masks were given and not one of them fits an image.

    """
    part = DatasetFiles()
    for path, uri in _list_images(images):
        part.add_image(path, uri)
    for path, uri in _list_images(masks) if masks else []:
        part.add_mask(path, uri)
    if masks and not part.masks:
        raise InputError(f"{masks}: no mask in it; expected {', '.join(SUFFIXES)} files, named as their images")
    if not part.images:
        raise InputError(f"{images}: no image in it; expected {', '.join(SUFFIXES)} files")
    return nlm.add_findings(_join_aloud(part, dataset, masks))


def _list_images(folder: str) -> list[tuple[str, str]]:
    paths = [(relative_path(folder, uri), uri) for uri in storage.list_files(folder)]
    return [(path, uri) for path, uri in paths if is_image(path) and not is_system_file(path)]


def _join_aloud(part: DatasetFiles, dataset: str, where: str) -> list[Record]:
    records = match_masks(part, dataset, where)
    masks = part.mask_uris()
    left = sorted(set(masks) - {uri for record in records for uri in record.mask_uris})
    if left:
        share = f"{len(left)} of {len(masks)}" if records else len(left)
        logger.warning("%s: %s masks fit no image (first: %s)", where, share, left[0])
    return records
