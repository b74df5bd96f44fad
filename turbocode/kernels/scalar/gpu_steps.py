"""What happens to one group inside the kernels of a GPU, value by value. The same bits as scalar/steps.py.

A table is 64 float32 in GPU memory: up to 15 boundaries from place 0 on, up to 16 centroids from place 16 on; for the
fast kernels a scale at place 15 (half_scale.py) and, of 4 bits, 32 cells from place 32 on (by_cell.py).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.formats.block_format import FLOAT16_MAX, FLOAT16_TINY
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types
from turbocode.kernels.scalar.norm_mode import NormMode

TABLE_SIZE, HALF_SCALE_AT, CENTROIDS_AT, CELLS_AT = 64, 15, 16, 32
SATURATED, NONFINITE = 1, 2  # flags of a group, as in scalar/steps.py
N_FACTS = 6  # float32 numbers that tell what coding a group cost; see group.py: moments_of_facts
SAFE_SQUARE = np.float32(2.0**120)
DOWN, UP = np.float32(2.0**-80), np.float32(2.0**80)
FINITE_MAX = np.float32(np.finfo(np.float32).max)
TINY = np.float32(FLOAT16_TINY)
Q8_MAX, Q4_OFFSET = np.float32(127.0), np.float32(8.0)
F16_MAX = np.float32(FLOAT16_MAX)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)

float32, int32, uint32, uint64 = types.float32, types.int32, types.uint32, types.uint64


@functools.cache
def searcher(bits: int) -> Any:
    """index(u, b): how many of the 2**bits - 1 boundaries b are <= u, by bisection."""
    if bits == 2:

        @device
        def index(u: Any, b: Any) -> Any:
            high = u >= b[1]
            low = u >= (b[2] if high else b[0])
            return uint32(uint32(2 if high else 0) | uint32(1 if low else 0))

    elif bits == 3:

        @device
        def index(u: Any, b: Any) -> Any:
            high = u >= b[3]
            middle = u >= (b[5] if high else b[1])
            upper = b[6] if middle else b[4]
            lower = b[2] if middle else b[0]
            low = u >= (upper if high else lower)
            return uint32(uint32(4 if high else 0) | uint32(2 if middle else 0) | uint32(1 if low else 0))

    else:

        @device
        def index(u: Any, b: Any) -> Any:
            top = u >= b[7]
            high = u >= (b[11] if top else b[3])
            upper = b[13] if high else b[9]
            lower = b[5] if high else b[1]
            middle = u >= (upper if top else lower)
            first = b[14] if middle else b[12]
            second = b[10] if middle else b[8]
            third = b[6] if middle else b[4]
            fourth = b[2] if middle else b[0]
            upper = first if high else second
            lower = third if high else fourth
            low = u >= (upper if top else lower)
            word = uint32(uint32(8 if top else 0) | uint32(4 if high else 0))
            return uint32(word | uint32(2 if middle else 0) | uint32(1 if low else 0))

    return index


@functools.cache
def norm_corrector(mode: NormMode) -> Any:
    """corrected(norm, uc, cc): the norm to store before it is rounded to float16; see NormMode."""
    number = int(mode)
    is_raw, is_l2, is_mse = (number == int(m) for m in (NormMode.RAW, NormMode.L2, NormMode.MSE))

    @device
    def corrected(norm: Any, uc: Any, cc: Any) -> Any:
        result = _ZERO
        if norm >= TINY and cc > _ZERO:
            if is_raw:
                result = norm
            elif is_l2:
                result = _ptx.divide(norm, _ptx.square_root(cc))
            elif uc > _ZERO:
                result = _ptx.multiply(norm, _ptx.divide(uc, cc)) if is_mse else _ptx.divide(norm, uc)
        return result

    return corrected


@functools.cache
def fast_norm_corrector(mode: NormMode) -> Any:
    """`norm_corrector` to about 22 bits."""
    number = int(mode)
    is_raw, is_l2, is_mse = (number == int(m) for m in (NormMode.RAW, NormMode.L2, NormMode.MSE))

    @device
    def corrected(norm: Any, uc: Any, cc: Any) -> Any:
        result = _ZERO
        if norm >= TINY and cc > _ZERO:
            if is_raw:
                result = norm
            elif is_l2:
                result = norm * _ptx.inverse_root(cc)
            elif uc > _ZERO:
                result = norm * uc * _ptx.reciprocal(cc) if is_mse else norm * _ptx.reciprocal(uc)
        return result

    return corrected


@device
def store_facts(facts: Any, flags: Any, group: Any, flag: Any, found: Any) -> None:
    """Write what a kernel measured of a group."""
    _ptx.store_u8(flags + uint64(group), flag)
    for i in range(N_FACTS):
        _ptx.store_f32(facts + uint64(group) * uint64(4 * N_FACTS) + uint64(4 * i), found[i])


@device
def is_cut(value: Any) -> Any:
    """Whether float16 cannot hold the value: beyond 65504, or NaN."""
    return not (abs(value) <= F16_MAX)


@device
def half_bits(value: Any) -> Any:
    """The float16 nearest to the value as uint32, cut to 65504."""
    kept = value
    if is_cut(value):
        kept = -F16_MAX if value < _ZERO else F16_MAX
    return _ptx.pack_halves(kept, _ZERO)


@device
def bounded_inverse(x: Any) -> Any:
    """1 / x, or 0 where that is not finite or x is 0."""
    inverse = _ZERO
    if x != _ZERO:
        inverse = _ptx.divide(_ONE, x)
    if not (abs(inverse) <= FINITE_MAX):
        inverse = _ZERO
    return inverse


@device
def q8_level(value: Any, inverse: Any) -> Any:
    """value * inverse to the nearest of -127 to 127, half away from zero, as float32."""
    scaled = _ptx.multiply(value, inverse)
    level = _ptx.truncate(scaled)
    if abs(_ptx.subtract(scaled, level)) >= _HALF:
        level = _ptx.add(level, _ONE if scaled > _ZERO else -_ONE)
    return level if abs(level) <= Q8_MAX else _ZERO


@device
def q4_level(value: Any, inverse: Any) -> Any:
    """The nibble 0 to 15 of value * inverse + 8.5, as int32."""
    level = _ptx.add(_ptx.multiply(value, inverse), Q4_OFFSET + _HALF)
    return min(int32(15), _ptx.to_int(level if level >= _ZERO else _ZERO))
