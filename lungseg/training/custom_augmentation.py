"""An augmentation of the user's own code, applied after the built-in ones."""

import zlib

import numpy as np

from lungseg.arrays import U8
from lungseg.errors import SettingsError
from lungseg.model.custom_code import AUGMENTATION, guarded, load_object
from lungseg.schema import NOT_ANNOTATED, is_annotated

_SEED = 1000  # differs from the numbers of the built-in augmentations


class CustomAugmentation:
    """Calls a custom function with copies, and checks what it returns; its random numbers depend on the key only."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._call = guarded(AUGMENTATION, path, load_object(AUGMENTATION, path))

    def __call__(self, image: U8, masks: U8, key: tuple[int, int, str]) -> tuple[U8, U8]:
        """Augment an image u8[S,S] and its masks u8[K,S,S]; key is (seed, epoch, image_id).

        With one class the function gets its mask u8[S,S], zeros where the image has none; with several all masks, which
        are NOT_ANNOTATED everywhere where their class is not annotated.

        Raises:
            SettingsError: the custom function fails, or returns something else than such an image and mask.

        """
        seed, epoch, image_id = key
        random = np.random.default_rng((seed, epoch, zlib.crc32(image_id.encode()), _SEED))
        has_mask = len(masks) > 1 or is_annotated(masks[0])
        mask = masks if len(masks) > 1 else masks[0] * np.uint8(has_mask)
        returned = self._call(image.copy(), mask.copy(), random)
        if isinstance(returned, tuple) and len(returned) == 2:
            new_image, new_mask = returned
            if _is_like(new_image, image) and _is_like(new_mask, mask):
                new_masks = new_mask.reshape(masks.shape) if has_mask else masks
                if all(map(_has_same_values, new_masks, masks)):
                    return new_image, new_masks
        raise SettingsError(
            f"{AUGMENTATION.option} {self._path} returned {_describe(returned)}, expected an image and a mask in "
            f"{{0,1}}, both uint8 of shape {image.shape}" + (f" and {mask.shape}" if mask.ndim > 2 else "")
        )


def _has_same_values(new_mask: U8, mask: U8) -> bool:
    """Return whether a mask is in {0,1}, or still not annotated where it was."""
    if not is_annotated(mask):
        return bool((new_mask == NOT_ANNOTATED).all())
    return int(new_mask.max(initial=0)) <= 1


def _is_like(array: object, original: U8) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.shape == original.shape


def _describe(returned: object) -> str:
    if isinstance(returned, np.ndarray):
        return f"one array, {returned.dtype} of shape {returned.shape}"
    if isinstance(returned, tuple) and all(isinstance(item, np.ndarray) for item in returned):
        arrays = [f"{item.dtype} of shape {item.shape} up to {item.max(initial=0)}" for item in returned]
        return " and ".join(arrays) or "an empty tuple"
    return type(returned).__name__
