"""Post-process a predicted mask: drop specks, keep the lungs, fill holes, smooth the border."""

import cv2
import numpy as np

from lungseg.config import PostprocessSettings
from lungseg.config.class_names import HEART, LUNG, LUNG_SIDES
from lungseg.imaging.lung_sides import label_components
from lungseg.imaging.run_lengths import Runs, fill, find_holes, label_runs

_ONE_COMPONENT = (*LUNG_SIDES, HEART)  # classes of one organ in one piece
_MIN_LUNG = 0.05  # of the other lung's area; a smaller component is not a second lung


def clean(mask: Runs, settings: PostprocessSettings, name: str = LUNG) -> Runs:
    """Post-process the mask of a class in the order specks, lungs, holes, smooth.

    Each lung and the heart are one component without holes. Any other class, such as opacity, may have several, and
    holes: lungs and holes leave it as it is.
    """
    if settings.specks:
        mask = drop_specks(mask, settings.specks)
    if settings.lungs and name == LUNG:
        mask = keep_lungs(mask)
    if settings.lungs and name in _ONE_COMPONENT:
        mask = keep_largest(mask)
    if settings.holes and name in (LUNG, *_ONE_COMPONENT):
        mask = fill_holes(mask)
    return smooth(mask, settings.smooth) if settings.smooth else mask


def count_components(mask: Runs) -> int:
    """Count the 8-connected components of a mask."""
    return label_runs(mask)[1]


def drop_specks(mask: Runs, share: float) -> Runs:
    """Drop components of a mask that are smaller than this share of the mask's area."""
    labels, _ = label_runs(mask)
    areas = np.bincount(labels, mask.lengths)
    return mask.select((areas >= share * mask.area)[labels])


def keep_largest(mask: Runs) -> Runs:
    """Keep the component with most pixels."""
    labels, count = label_runs(mask)
    return mask.select(labels == np.argmax(np.bincount(labels, mask.lengths))) if count > 1 else mask


def keep_lungs(mask: Runs) -> Runs:
    """Keep on each side of the midline the component with most pixels on that side.

    This is not the same as the two largest components: a large false region beside one lung is dropped, and the
    smaller lung on the other side is kept. Joined lungs are one component. A second component under 5 % of the first
    is not a lung.
    """
    while True:
        kept = _keep_one_per_side(mask)
        if kept is mask:
            return mask
        mask = kept  # without the dropped components, the midline may move


def fill_holes(mask: Runs) -> Runs:
    """Fill background that is not connected to the image border (4-connected, as lungs are 8-connected)."""
    return fill(mask, find_holes(mask))


def smooth(mask: Runs, share: float) -> Runs:
    """Smooth the border of a mask: morphological opening, then closing, with a disk.

    share: radius of the disk as a share of the image's longer side. A radius under half a pixel changes nothing.
    """
    radius = round(share * max(mask.shape))
    if radius < 1:
        return mask
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(mask.to_mask(), cv2.MORPH_OPEN, disk)
    return Runs.from_mask(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disk))  # type: ignore[arg-type]


def _keep_one_per_side(mask: Runs) -> Runs:
    components = label_components(mask)
    if components.image_left_px.size <= 1:
        return mask
    largest = {int(np.argmax(side)) for side in (components.image_left_px, components.image_right_px) if side.any()}
    areas = {label: int(components.image_left_px[label] + components.image_right_px[label]) for label in largest}
    lungs = [label for label in largest if areas[label] >= _MIN_LUNG * max(areas.values())]
    return mask.select(np.isin(components.labels, lungs))
