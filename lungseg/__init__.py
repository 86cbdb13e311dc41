"""Lung segmentation in frontal chest X-rays: a segmenter for Python, and jobs for training and archives.

    import lungseg
    segment = lungseg.load()
    result = segment("x.dcm")

docs/python.md describes the public names, which `__all__` lists. They are imported on first use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungseg.errors import ImageError, InputError, LungsegError, SettingsError
    from lungseg.inference.result import Result
    from lungseg.inference.segmenter import Segmenter, load

__version__ = "0.2.0"

__all__ = ["ImageError", "InputError", "LungsegError", "Result", "Segmenter", "SettingsError", "load"]

_MODULES = {
    "Result": "lungseg.inference.result",
    "Segmenter": "lungseg.inference.segmenter",
    "load": "lungseg.inference.segmenter",
}

MAX_IMAGE_PIXELS = 1 << 28
"""Larger images are refused, px. The largest X-ray detectors have 1 << 25."""

# OpenCV reads its limit once, when it is imported, and checks it before it allocates memory for the pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_IMAGE_PIXELS))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "lungseg.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
