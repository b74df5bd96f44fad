"""What the fast encoder asks of a way to find indices: see by_exponent.py (2 and 3 bits) and by_cell.py (4 bits)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES


class TensorIndices(NamedTuple):
    """From a lane's values before the transform's last stage (see tensor_lanes.py) to its packed indices.

    words : uint32 registers that hold them
    constants : float32 registers that hold what follows from the codebook; constants[0] / |x| is `scale`
    mirrors : uint32 (4, words): what turns lane t's indices around where the sign after the rotation is negative
    zeros : the words of a group of zeros, whose indices are those above the boundary at 0
    prepare(table, lane, constants) : set constants; a uint32 that the lane keeps for `find`
    find(d, scale, kept, constants, mirror, words) : set words; |c|^2 of the lane's values
    index(words, v) : that of the lane's value v
    spot(block, t) -> places : uint32 numbers that say where lane t's words go in a group's blocks
    put(places, words) : store the words there
    """

    words: int
    constants: int
    mirrors: NDArray[np.uint32]
    zeros: tuple[int, ...]
    prepare: Any
    find: Any
    index: Any
    spot: Any
    put: Any


def chunk_signs(signs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(4, chunks, 8): whether the sign of value e of lane t's chunk is negative."""
    return (signs < 0).reshape(-1, LANES, CHUNK).transpose(1, 0, 2)
