"""What is done to a predicted mask before it is stored."""

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def components(mask: U8) -> int:
    """Count a mask's components, u8[H,W] in {0,1}, diagonal neighbours joined."""
    return int(cv2.connectedComponents(mask, connectivity=8)[0]) - 1


def keep_lungs(mask: U8) -> U8:
    """Keep the two largest components of a mask u8[H,W] in {0,1} and fill their holes."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    largest = sorted(range(1, count), key=lambda label: -int(stats[label, cv2.CC_STAT_AREA]))[:2]
    return _fill_holes(np.isin(labels, largest).astype(np.uint8))


def _fill_holes(mask: U8) -> U8:
    """Fill background that does not reach the picture's edge (4-connected, as lungs are 8-connected)."""
    count, labels = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
    outside = labels == labels[0, 0]
    return (~outside[1:-1, 1:-1]).astype(np.uint8) if count > 1 else mask
