"""Use the alpha channel of masks, and blacken transparent padding of images."""

import numpy as np

from lungseg.arrays import Grey, Pixels
from lungseg.imaging.pillow import open_image
from lungseg.imaging.thumbnails import border_pixels

_LEAST_RANGE = 8  # alpha or colour that varies by less than full scale / 8 is constant
_BINS = 16
_FEW_LEVELS, _FEW_SHARE = 3, 0.9  # as many of the bins hold this share of a mask's pixels; grey images fill more
_FRAME = 0.8  # share of the border that is drawn, when what is drawn surrounds the lungs
_HIDES_ALPHA = (b"GIF8", b"II*\0", b"MM\0*")  # OpenCV drops the alpha of GIF, and of grey TIFF


def blacken_padding(pixels: Pixels, alpha: Grey | None) -> Pixels:
    """Set rows and columns at the border to black where they are fully transparent; alpha has no other effect."""
    if alpha is None:
        return pixels
    rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
    if not rows.size or (rows.size, columns.size) == alpha.shape:
        return pixels
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    padded = np.zeros_like(pixels)
    padded[inside] = pixels[inside]
    return padded


def mask_levels(grey: Grey, alpha: Grey | None) -> tuple[Grey, bool]:
    """Return grey levels in which a mask is light, and whether they are those of the alpha channel.

    Hidden pixels have no colour. If the colours of the others do not form a mask, alpha is the mask; if what is drawn
    surrounds the image, its holes are the mask. grey and alpha: u8 or u16[H,W].
    """
    if alpha is None:
        return grey, False
    low, high = int(alpha.min()), int(alpha.max())
    if high - low < np.iinfo(alpha.dtype).max // _LEAST_RANGE and not _is_faint_mask(grey, alpha):
        return grey, False
    shown = alpha > high // 2
    if _is_mask(grey[shown]):
        visible: Grey = np.where(shown, grey, grey.dtype.type(0))
        return visible, False
    drawn = alpha > (low + high) // 2
    surrounds = border_pixels(drawn).mean() > _FRAME
    if not surrounds and np.array_equal(grey > int(grey.max()) // 2, drawn):  # colour and alpha agree
        return grey, False
    levels: Grey = (
        np.subtract(alpha.dtype.type(high), alpha) if surrounds else np.subtract(alpha, alpha.dtype.type(low))
    )
    return levels, True


def hidden_alpha(content: bytes) -> Grey | None:
    """Decode the alpha channel of a GIF or TIFF file that OpenCV does not return; None if there is none."""
    if not content.startswith(_HIDES_ALPHA):
        return None
    from PIL import Image

    try:
        with open_image(content) as image:
            if "A" not in image.getbands() and "transparency" not in image.info:
                return None
            return np.asarray(image.convert("RGBA").getchannel("A"))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return None  # colour decides


def _is_faint_mask(grey: Grey, alpha: Grey) -> bool:
    """Return whether alpha has two levels, such as 0 and 1, and all that it shows most has one colour."""
    levels = np.unique(alpha)
    return levels.size == 2 and int(np.ptp(grey[alpha == levels[1]])) == 0


def _is_mask(colours: Grey) -> bool:
    """Return whether grey values, u8 or u16[N], have several levels and are nearly all in a few of them."""
    low, high = int(colours.min()), int(colours.max())
    if high - low < np.iinfo(colours.dtype).max // _LEAST_RANGE:
        return False
    bins = ((colours.astype(np.int64) - low) * _BINS) // (high - low + 1)
    counts = np.sort(np.bincount(bins, minlength=_BINS))
    is_few = counts[-_FEW_LEVELS:].sum() >= _FEW_SHARE * colours.size
    return bool(is_few and counts[-2] > 0.01 * colours.size)
