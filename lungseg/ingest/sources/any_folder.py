"""Folders of images with or without folders of masks; the source of every image that no other source recognises."""

import logging
from collections.abc import Sequence

from lungseg import storage
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import is_image, is_system_file, relative_path
from lungseg.ingest.sources import montgomery_shenzhen
from lungseg.ingest.sources.mask_matching import DatasetFiles, group_by_dataset, match_masks, names_by_root
from lungseg.schema import Record

logger = logging.getLogger(__name__)


def recognise(folder: str, files: Sequence[str]) -> list[Record]:
    """Take every image, with its masks if `images` or `CXR_png` is beside `masks`, `mask` or `ManualMask`.

    Images elsewhere have no masks. Masks that match no image are logged as a warning.

    Raises:
        InputError: there are images and masks and no mask matches.

    """
    groups = group_by_dataset(folder, (uri for uri in files if is_image(uri)))
    names = names_by_root(folder, groups)
    return [
        record
        for root, group in groups.items()
        for record in _match_and_warn(group, names.get(root, ""), storage.join(folder, root) if root else folder)
    ]


def pair_folders(images: str, masks: str, dataset: str) -> list[Record]:
    """List a folder of images with a folder of masks; a mask has its image's path, with or without _mask at the end.

    Raises:
        InputError: a folder does not exist or is empty, or masks were given and none of them matches an image.

    """
    files = DatasetFiles()
    for path, uri in _list_images(images):
        files.add_image(path, uri)
    for path, uri in _list_images(masks) if masks else []:
        files.add_mask(path, uri)
    if masks and not files.masks:
        raise InputError(f"{masks}: no mask in it; expected {', '.join(SUFFIXES)} files, named as their images")
    if not files.images:
        raise InputError(f"{images}: no image in it; expected {', '.join(SUFFIXES)} files")
    return montgomery_shenzhen.add_findings(_match_and_warn(files, dataset, masks))


def _list_images(folder: str) -> list[tuple[str, str]]:
    paths = [(relative_path(folder, uri), uri) for uri in storage.list_files(folder)]
    return [(path, uri) for path, uri in paths if is_image(path) and not is_system_file(path)]


def _match_and_warn(files: DatasetFiles, dataset: str, folder: str) -> list[Record]:
    records = match_masks(files, dataset, folder)
    masks = files.mask_uris()
    unmatched = sorted(set(masks) - {uri for record in records for uri in record.mask_uris})
    if unmatched:
        count = f"{len(unmatched)} of {len(masks)}" if records else len(unmatched)
        logger.warning("%s: %s masks match no image (first: %s)", folder, count, unmatched[0])
    return records
