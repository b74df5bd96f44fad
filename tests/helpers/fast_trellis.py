"""What the fast trellis encoder must store: the blocks of paths found with whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from turbocode.kernels.fwht.cpu import RADIX
from turbocode.kernels.scalar import NORM_MODES, NormMode
from turbocode.kernels.trellis import Trellis, cpu, whole_numbers


def fast_blocks(codec: Any, x: Any) -> Any:
    """uint8 (n, bytes_per_group) of groups x (n, group_size), float16 or float32, by cpu's steps but for the search."""
    form, rotation, table = codec.block_format, codec.rotation, codec.tables(0)[0]
    n, g = x.shape
    y, u = np.empty((n, g), np.float32), np.empty((n, g), np.float32)
    facts, flags = np.empty((n, 2), np.float32), np.empty(n, np.uint8)
    stored = np.ascontiguousarray(x).view(np.uint16) if x.dtype == np.float16 else np.ascontiguousarray(x)
    turn = (not rotation.is_identity, rotation.width, rotation.base)
    scaled = rotation.signs_after * rotation.scale
    cpu._prepare_all(stored, *turn, rotation.signs_before, scaled, RADIX, y, u, facts, flags)
    states = whole_numbers.search(u, table, Trellis.of_format(form), cpu.viterbi)[0]
    out, moments = np.empty((n, form.bytes_per_group), np.uint8), np.empty((n, 4))
    mode = int(NormMode(NORM_MODES[codec.norm_mode]))
    cpu._write_all(y, u, facts, states, table, form.bits, mode, out, moments, flags)
    return out
