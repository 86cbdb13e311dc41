"""Random changes to training samples, seeded so that neither ranks nor a restart change what an image looks like."""

import math
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from lungseg.config import AugmentSettings

U8 = NDArray[np.uint8]


def augment(image: U8, mask: U8, settings: AugmentSettings, key: tuple[int, int, str]) -> tuple[U8, U8]:
    """Change an image u8[S,S] and its mask u8[S,S] in {0,1} alike; key is (seed, epoch, image_id)."""
    seed, epoch, image_id = key
    random = np.random.default_rng((seed, epoch, zlib.crc32(image_id.encode())))
    # Every draw is made whether it is used or not, so that one setting does not shift the others' random numbers.
    angle, enlarge, right, down, gamma = random.uniform(-1.0, 1.0, 5)
    flip = random.random() < settings.flip
    side = image.shape[0]
    centre = ((side - 1) / 2.0, (side - 1) / 2.0)
    turn = cv2.getRotationMatrix2D(centre, angle * settings.rotate_deg, 1.0 + enlarge * settings.scale)
    matrix = np.asarray(turn, np.float64)
    matrix[:, 2] += side * settings.shift * np.array([right, down])
    if flip:
        matrix = np.array([[-1.0, 0.0, side - 1.0], [0.0, 1.0, 0.0]]) @ np.vstack([matrix, [0.0, 0.0, 1.0]])
    return _grey(_warp(image, matrix), math.exp(gamma * settings.gamma)), (
        _warp(mask * np.uint8(255), matrix) > 127
    ).astype(np.uint8)


def _warp(image: U8, matrix: NDArray[np.float64]) -> U8:
    """Move a picture by an affine matrix [2,3]; what comes in from outside is black, as padding is."""
    return cv2.warpAffine(image, matrix, (image.shape[1], image.shape[0]), flags=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _grey(image: U8, gamma: float) -> U8:
    levels = np.rint(255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)
    return levels[image]
