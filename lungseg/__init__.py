"""Distributed training and batch inference for lung segmentation in frontal chest X-rays."""

import os

__version__ = "0.2.0"

MAX_IMAGE_PIXELS = 1 << 28
"""Larger images are refused, px. The largest X-ray detectors have 1 << 25."""

# OpenCV reads its limit once, when it is imported, and checks it before it allocates memory for the pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_IMAGE_PIXELS))
