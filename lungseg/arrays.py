"""Names of array and row types used across packages."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]


Grey = NDArray[np.uint8] | NDArray[np.uint16]


Floats = NDArray[np.float32]


Flags = NDArray[np.bool_]


U8 = NDArray[np.uint8]


F32 = NDArray[np.float32]
