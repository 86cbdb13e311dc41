"""The result of segmenting one X-ray in this process: masks, probabilities, checks and areas."""

from dataclasses import dataclass

from lungseg.arrays import F32, U8, Grey, Row
from lungseg.errors import ImageError
from lungseg.imaging.geometry import restore
from lungseg.imaging.lung_sides import split_sides
from lungseg.imaging.orientation import to_stored
from lungseg.schema import USABLE, Geometry


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented X-ray.

    row: its row of PREDICTIONS. spacing_mm: side of a pixel, None if unknown. image: u8 or u16[H,W], upright, with
    light bones. upright_mask: u8[H,W] in {0,1}. square: probabilities f32[S,S] in the square of the model, placed as
    `geometry` states. The last four are None where the image was rejected.
    """

    row: Row
    spacing_mm: float | None = None
    image: Grey | None = None
    upright_mask: U8 | None = None
    square: F32 | None = None
    geometry: Geometry | None = None

    @property
    def status(self) -> str:
        """Return ok or repaired, or rejected or failed: there is no mask, and `reason` says why."""
        return str(self.row["status"])

    @property
    def ok(self) -> bool:
        """Return whether there is a mask."""
        return self.status in USABLE

    @property
    def reason(self) -> str:
        """Return why there is no mask, or what was repaired; empty if there is nothing to say."""
        return str(self.row["message"])

    @property
    def mask(self) -> U8:
        """Return the mask of both lungs u8[H,W] in {0,1}, in the size and orientation of the stored pixels.

        Raises:
            ImageError: the image was rejected.

        """
        mask, geometry = self._require_mask()
        return to_stored(mask, geometry.orientation)

    @property
    def right(self) -> U8:
        """Return the mask of the patient's right lung, u8[H,W] in {0,1}; see `split_sides`.

        Raises:
            ImageError: the image was rejected.

        """
        mask, geometry = self._require_mask()
        return to_stored(split_sides(mask)[0], geometry.orientation)

    @property
    def left(self) -> U8:
        """Return the mask of the patient's left lung, u8[H,W] in {0,1}; see `split_sides`.

        Raises:
            ImageError: the image was rejected.

        """
        mask, geometry = self._require_mask()
        return to_stored(split_sides(mask)[1], geometry.orientation)

    @property
    def probability(self) -> F32:
        """Return the lung probability f32[H,W] in [0,1] before post-processing, as `mask` is oriented.

        Raises:
            ImageError: the image was rejected.

        """
        _, geometry = self._require_mask()
        assert self.square is not None, "there is a mask"
        return to_stored(restore(self.square, geometry), geometry.orientation)

    def _require_mask(self) -> tuple[U8, Geometry]:
        if self.upright_mask is None or self.geometry is None:
            raise ImageError(self.row["codes"][0], self.reason)
        return self.upright_mask, self.geometry
