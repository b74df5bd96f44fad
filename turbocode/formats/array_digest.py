"""The SHA-256 by which descriptions refer to arrays."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def array_sha256(array: NDArray[Any]) -> str:
    """Hex digest of an array's little-endian bytes in C order."""
    little = array if sys.byteorder == "little" else array.byteswap()
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()
