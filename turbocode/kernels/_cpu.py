"""The only place that touches Numba's internals on the CPU: compile options, bit casts, float16 conversion.

`strict` code rounds every operation on its own (no contraction, no reassociation), so that blocks are the same bytes on
every machine and in the exported C header. `relaxed` code may be reordered: only sums that nobody stores use it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

strict = numba.njit(cache=True, nogil=True, error_model="numpy")
strict_parallel = numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
relaxed = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
relaxed_parallel = numba.njit(
    cache=True, nogil=True, error_model="numpy", parallel=True, fastmath={"contract", "reassoc", "nsz"}
)
prange = numba.prange

GROUPS_PER_TASK = 64  # groups that one parallel task handles with one set of scratch buffers


@intrinsic
def float32_from_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 whose IEEE 754 pattern is the uint32 `bits`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def bits_from_float32(typingctx: Any, value: Any) -> Any:
    """The IEEE 754 pattern of the float32 `value` as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


_TWO_POW_112 = np.float32(2.0**112)  # moves a float16 exponent to where float32 keeps its own
_HALF_NORMAL = np.uint32(0x38800000)  # 2**-14 as float32 bits: below it a float16 is subnormal
_HALF_OVERFLOW = np.uint32(0x477FF000)  # 65520 as float32 bits: from here on rounding gives infinity
_SUBNORMAL_MAGIC = np.uint32(0x3F000000)  # 0.5: adding it aligns a subnormal's last bit with float32's last bit
_REBIAS = np.uint32(0xC8000FFF)  # (15 - 127) << 23, plus just under half of the bits to be dropped


@strict
def float32_from_float16(half: Any) -> Any:
    """The float32 value of the float16 whose pattern is the uint16 `half`; exact."""
    magnitude = np.uint32(np.uint32(half & np.uint16(0x7FFF)) << np.uint32(13))
    sign = np.uint32(np.uint32(half & np.uint16(0x8000)) << np.uint32(16))
    finite = bits_from_float32(float32_from_bits(magnitude) * _TWO_POW_112)
    special = np.uint32(magnitude | np.uint32(0x7F800000))
    bits = special if magnitude >= np.uint32(0x0F800000) else finite
    return float32_from_bits(np.uint32(bits | sign))


@strict
def float16_from_float32(value: Any) -> Any:
    """The pattern of the float16 nearest to the float32 `value` (ties to even) as uint16; NaN stays NaN."""
    bits = bits_from_float32(value)
    sign = np.uint32(bits & np.uint32(0x80000000))
    magnitude = np.uint32(bits ^ sign)
    if magnitude >= _HALF_OVERFLOW:
        half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(0x7C00)
    elif magnitude < _HALF_NORMAL:
        shifted = float32_from_bits(magnitude) + float32_from_bits(_SUBNORMAL_MAGIC)
        half = np.uint32(bits_from_float32(shifted) - _SUBNORMAL_MAGIC)
    else:
        odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
        half = np.uint32(np.uint32(np.uint32(magnitude + _REBIAS) + odd) >> np.uint32(13))
    return np.uint16(half | np.uint32(sign >> np.uint32(16)))


def load_float32(stored):  # type: ignore[no-untyped-def]
    """The float32 value of one array element: a uint16 is a float16 pattern, a float32 is itself."""
    raise NotImplementedError("compiled code only")


# Numba compares annotations with those of the lambdas, which have none.
@overload(load_float32)
def _load_float32(stored):  # type: ignore[no-untyped-def]
    if stored == types.uint16:
        return lambda stored: float32_from_float16(stored)
    if stored == types.float32:
        return lambda stored: stored
    return None
