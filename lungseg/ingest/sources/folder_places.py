"""Find the dataset of each folder of an archive, and whether it holds images or masks, from the names of folders."""

from collections.abc import Iterable, Iterator, Sequence, Set as AbstractSet
from dataclasses import dataclass, field

from lungseg.config.class_names import LUNG, ONE_CLASS, requested_class
from lungseg.ingest.sources.folder_kinds import Content, FolderKind, kind_inside_masks, kind_of


@dataclass(frozen=True)
class Place:
    """Where files are in their dataset.

    root: folder of the dataset. path: the file's folder below the folder of images or masks. side: leftmask or
    rightmask for the masks of one lung, or the requested class that the folder is named after.
    """

    root: str
    content: Content
    path: str
    side: str = ""


@dataclass
class _Siblings:
    """Roots that have a folder of images, or of masks; (root, name) of the folders in a folder of images.

    lungs: roots that have a folder with a known name for masks of lungs.
    """

    images: set[str] = field(default_factory=set)
    masks: set[str] = field(default_factory=set)
    lungs: set[str] = field(default_factory=set)
    image_subfolders: set[tuple[str, str]] = field(default_factory=set)


def find_places(directories: Iterable[str], classes: Sequence[str] = ONE_CLASS) -> dict[str, Place]:
    """Return the place of each directory that holds image files, given as a path below the archive's folder.

    A folder beside images, or inside a folder of masks, that is named after one of several requested classes holds the
    masks of that class. Otherwise the innermost folder with a telling name decides. Files elsewhere belong to the
    dataset of the archive itself, or to the dataset of a folder of masks that lies beside them.
    """
    split = {directory: _without_repeats(directory) for directory in directories}
    siblings = _find_siblings(split)
    of_classes = {
        directory: _place_of_class(folders, siblings, split.keys(), classes) for directory, folders in split.items()
    }
    siblings.masks.update(place.root for place in of_classes.values() if place is not None)
    return {
        directory: of_classes[directory] or _place(directory, folders, siblings, split.keys())
        for directory, folders in split.items()
    }


def _place_of_class(
    folders: list[str], siblings: _Siblings, directories: AbstractSet[str], classes: Sequence[str]
) -> Place | None:
    """Return the place of masks of one of several requested classes or of another structure; None for others."""
    for depth, name in reversed(list(enumerate(folders))) if tuple(classes) != ONE_CLASS else ():
        kind, above = requested_class(name, classes), folders[:depth]
        if above and (outer := kind_of(above[-1])) is not None and outer.content != "images":
            above = above[:-1]  # as in masks/heart
        root = "/".join(above)
        if root not in siblings.images and root not in directories:
            continue
        if kind not in ("", LUNG):
            return Place(root, "lungs", "/".join(folders[depth + 1 :]), kind)
        structure = kind_inside_masks(name)
        if structure is not None and structure.content == "other":
            return Place(root, "other", "/".join(folders[depth + 1 :]))
    return None


def _without_repeats(directory: str) -> list[str]:
    """Split a path into folders; of images/images and masks/masks, as some archives unpack, keep one."""
    folders = directory.split("/") if directory else []
    pairs = zip(["", *folders], folders, strict=False)
    return [name for above, name in pairs if name.lower() != above.lower() or kind_of(name) is None]


def _find_siblings(directories: dict[str, list[str]]) -> _Siblings:
    siblings = _Siblings()
    for folders in directories.values():
        for depth, root, kind in _telling_folders(folders):
            if kind.content == "images":
                siblings.images.add(root)
                if folders[depth + 1 :]:
                    siblings.image_subfolders.add((root, folders[depth + 1]))
            else:
                siblings.masks.add(root)
                if kind.content == "lungs" and not kind.is_guess:
                    siblings.lungs.add(root)
    return siblings


def _telling_folders(folders: list[str]) -> Iterator[tuple[int, str, FolderKind]]:
    """List depth, root and kind of the folders whose name tells what they hold, the innermost first.

    A folder of masks inside another, as leftMask in ManualMask, is part of the outer one.
    """
    kinds = [kind_of(name) for name in folders]
    for depth, kind in reversed(list(enumerate(kinds))):
        above = kinds[depth - 1] if depth else None
        is_inside_masks = above is not None and above.content != "images" and not above.needs_sibling
        if kind is not None and not (is_inside_masks and kind.content != "images"):
            yield depth, "/".join(folders[:depth]), kind


def _place(directory: str, folders: list[str], siblings: _Siblings, directories: AbstractSet[str]) -> Place:
    for depth, root, kind in _telling_folders(folders):
        if kind.needs_sibling:
            beside = (siblings.masks,) if kind.content == "images" else (siblings.images, directories)
            if not any(root in roots for roots in beside):
                continue
        below = [*filter(None, [kind.subset]), *folders[depth + 1 :]]
        if kind.is_guess and root in siblings.lungs:
            return Place(root, "other", "/".join(below))
        if kind.content == "lungs":
            return _place_of_mask(root, kind, below, siblings)
        return Place(root, kind.content, "/".join(below))
    if directory in siblings.masks and directory not in siblings.images:  # images beside a folder of masks
        return Place(directory, "images", "")
    return Place("", "images", directory)


def _place_of_mask(root: str, kind: FolderKind, below: list[str], siblings: _Siblings) -> Place:
    """Place masks of lungs; a folder inside, as leftMask or heart, may say more about them."""
    inside = kind_inside_masks(below[0]) if below else None
    if inside is None or (root, below[0]) in siblings.image_subfolders:
        return Place(root, "lungs", "/".join(below), kind.side)
    return Place(root, inside.content, "/".join(below[1:]), inside.side or kind.side)
