"""Instructions on the bits of words, and on float16 packed two to a word; see _ptx.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from turbocode.kernels._cuda import types
from turbocode.kernels._ptx import instruction

u32, f32 = types.uint32, types.float32

# The upper word of the 64-bit number (high, low) shifted left by n; _ptx.py has the one to the right.
funnel_shift_left = instruction(
    "shf.l.wrap.b32 $0, $1, $2, $3;",
    u32,
    (u32, u32, u32),
    lambda low, high, n: ((int(high) << 32 | int(low)) << (int(n) & 31)) >> 32 & 0xFFFFFFFF,
)
# The low word of the 64-bit number (high, low) shifted right by n from 0 to 63.
shift_right_long = instruction(
    "{.reg .b64 t; mov.b64 t, {$1, $2}; shr.u64 t, t, $3; cvt.u32.u64 $0, t;}",
    u32,
    (u32, u32, u32),
    lambda low, high, n: (int(high) << 32 | int(low)) >> int(n) & 0xFFFFFFFF,
)


def bitwise(function: Callable[[int, int, int], int]) -> Any:
    """A device function of three uint32 that does in one instruction what `function` does with each of their bits."""
    table = function(0xF0, 0xCC, 0xAA) & 0xFF
    return instruction(
        f"lop3.b32 $0, $1, $2, $3, {table};",
        u32,
        (u32, u32, u32),
        lambda a, b, c: function(int(a), int(b), int(c)) & 0xFFFFFFFF,
    )


exclusive_or = bitwise(lambda a, b, c: a ^ b ^ c)
choose_bits = bitwise(lambda mask, a, b: (mask & a) | (~mask & b))


def _extreme(operation: Callable[..., Any]) -> Callable[..., int]:
    def compute(a: Any, b: Any) -> int:
        left, right = (np.array([int(x) & 0xFFFF, int(x) >> 16], np.uint16).view(np.float16) for x in (a, b))
        found = operation(left, right).view(np.uint16)
        found = np.where(np.isnan(left) | np.isnan(right), np.uint16(0x7FFF), found)
        return int(found[0]) | int(found[1]) << 16

    return compute


# Of both halves; NaN where either is NaN.
max_halves = instruction("max.NaN.f16x2 $0, $1, $2;", u32, (u32, u32), _extreme(np.maximum))
min_halves = instruction("min.NaN.f16x2 $0, $1, $2;", u32, (u32, u32), _extreme(np.minimum))
max_sizes = instruction(
    "{.reg .b32 a, b; abs.f16x2 a, $1; abs.f16x2 b, $2; max.NaN.f16x2 $0, a, b;}",
    u32,
    (u32, u32),
    _extreme(lambda a, b: np.maximum(abs(a), abs(b))),
)
to_float = instruction("cvt.rn.f32.u32 $0, $1;", f32, (u32,), lambda number: np.float32(int(number)))


def _products(a: Any, b: Any) -> int:
    left, right = (np.array([int(x) & 0xFFFF, int(x) >> 16], np.uint16).view(np.float16) for x in (a, b))
    with np.errstate(all="ignore"):
        found = (left.astype(np.float32) * right.astype(np.float32)).astype(np.float16).view(np.uint16)
    return int(found[0]) | int(found[1]) << 16


# Of both halves, each product rounded to nearest.
scale_halves = instruction("mul.rn.f16x2 $0, $1, $2;", u32, (u32, u32), _products)
