"""One side (keys or values) of a packed cache, as the attention kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbocode.formats import BlockFormat, MultirateFormat


@dataclass(frozen=True, eq=False)
class PackedSide:
    """Blocks and what is needed to read them.

    blocks : uint8 (n_seqs, n_kv_heads, n_tokens, bytes_per_vector), C-contiguous
    block_format : their layout
    centroids : float32 (1 or n_kv_heads, 2**bits), scaled for unit vectors of one group; (1, 1) where not used. Of a
        multirate side (1 or n_kv_heads, 9 * 1024 + 256): the tables of its rates, then its gains
    """

    blocks: NDArray[np.uint8]
    block_format: BlockFormat | MultirateFormat
    centroids: NDArray[np.float32]
