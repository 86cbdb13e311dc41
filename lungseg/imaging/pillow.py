"""Open images with Pillow, where OpenCV does not tell enough about a file."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


def open_image(content: bytes) -> "ImageFile":
    """Open an encoded image without warnings, which are about its metadata.

    Raises:
        OSError, SyntaxError, ValueError, TypeError, DecompressionBombError: Pillow does not read the file.

    """
    from PIL import Image

    # Repeated for each file, because other code may reset the filters; not undone, because threads share them.
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    return Image.open(io.BytesIO(content))
