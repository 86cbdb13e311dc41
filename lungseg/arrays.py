"""Names of array and row types used across packages."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]  # [H,W] grey, or [H,W,3] RGB
Grey = Pixels  # [H,W]
