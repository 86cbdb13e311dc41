"""Folders of images with or without folders of masks; the source of every image that no other source recognises."""

from collections.abc import Sequence

from lungseg import storage
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError
from lungseg.imaging.codecs import SUFFIXES
from lungseg.ingest.file_names import is_image, is_system_file, relative_path
from lungseg.ingest.sources import montgomery_shenzhen
from lungseg.ingest.sources.mask_matching import DatasetFiles, group_by_dataset, match_and_warn, names_by_root
from lungseg.schema import Record


def recognise(folder: str, files: Sequence[str], classes: Sequence[str] = ONE_CLASS) -> list[Record]:
    """Take every image, with its masks if a folder of images is beside a folder of masks (`folder_kinds`).

    Images elsewhere have no masks. Masks that match no image become rejected records and are logged as a warning.

    Raises:
        InputError: there are images and masks and no mask matches.

    """
    groups = group_by_dataset(folder, (uri for uri in files if is_image(uri)), classes)
    names = names_by_root(folder, groups)
    return [
        record
        for root, group in groups.items()
        for record in match_and_warn(group, _name_of(root, names), storage.join(folder, root) if root else folder)
    ]


def _name_of(root: str, names: dict[str, str]) -> str:
    """Return the name of a dataset; masks without images belong to the next dataset above, or else to the first."""
    above = (root[: len(root) - cut] for cut in range(len(root) + 1))
    return next((names[folder] for folder in above if folder in names), min(names.values(), default=""))


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
    return montgomery_shenzhen.add_findings(match_and_warn(files, dataset, masks))


def _list_images(folder: str) -> list[tuple[str, str]]:
    paths = [(relative_path(folder, uri), uri) for uri in storage.list_files(folder)]
    return [(path, uri) for path, uri in paths if is_image(path) and not is_system_file(path)]
