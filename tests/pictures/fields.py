"""Fields of grey values that drawn pictures are made of."""

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Floats = NDArray[np.float64]
Generator = np.random.Generator


def clouds(rng: Generator, side: int, power: float) -> Floats:
    """Compute noise of mean 0 and deviation 1 with the spectrum 1 / frequency ** power."""
    spectrum = np.fft.rfft2(rng.normal(size=(side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum / frequency**power, (side, side))
    return np.asarray((field - field.mean()) / (field.std() + 1e-12))


def grid(side: int) -> tuple[Floats, Floats]:
    """Return y and x from -1 to 1."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    return y, x


def to_grey(field: Floats) -> U8:
    """Scale a field to 0..255."""
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) * (255 / max(high - low, 1e-9)), np.uint8)
