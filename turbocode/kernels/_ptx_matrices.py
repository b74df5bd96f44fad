"""Products of small matrices on the tensor cores, which the lanes of a warp work out together.

D (16 x 8) = A (16 x k, rows) B (k x 8, columns) + C, float32 sums of float16 or bfloat16 products; k is 16, or 8 for
the `thin` ones. Lane 4 g + t holds parts of rows g and g + 8 of A, of column g of B (PTX ISA, section 9.7.14).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from turbocode.kernels import _cuda
from turbocode.kernels._cuda import types
from turbocode.kernels._ptx import collective_meaning, instruction

u32, f32 = types.uint32, types.float32


def _fragment(words: list[int], convert: Callable[[int], np.float32]) -> list[np.float32]:
    return [convert(word >> shift & 0xFFFF) for word in words for shift in (0, 16)]


def _multiply_matrices(convert: Callable[[int], np.float32], k: int) -> Callable[[list[Any]], list[Any]]:
    n = k // 8

    def meaning(args: list[Any]) -> list[Any]:
        a, b, c = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8))
        for lane, values in enumerate(args):
            g, t = divmod(lane, 4)
            left, right = (
                _fragment([int(w) for w in part], convert) for part in (values[: 2 * n], values[2 * n : 3 * n])
            )
            for half in range(n):
                column = 2 * t + 8 * half
                a[g, column : column + 2], a[g + 8, column : column + 2] = np.reshape(left, (n, 2, 2))[half]
                b[column : column + 2, g] = right[2 * half : 2 * half + 2]
            c[g, 2 * t : 2 * t + 2], c[g + 8, 2 * t : 2 * t + 2] = np.reshape(values[3 * n :], (2, 2))
        d = (a @ b + c).astype(np.float32)
        return [(*d[lane // 4, 2 * (lane % 4) :][:2], *d[lane // 4 + 8, 2 * (lane % 4) :][:2]) for lane in range(32)]

    return meaning


def _half_value(bits: int) -> np.float32:
    return np.float32(np.uint16(bits).view(np.float16))


def _bfloat_value(bits: int) -> np.float32:
    return np.uint32(bits << 16).view(np.float32)


_LONG = (
    "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 "
    "{{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
)
_THIN = "mma.sync.aligned.m16n8k8.row.col.f32.{0}.{0}.f32 {{$0,$1,$2,$3}}, {{$4,$5}}, {{$6}}, {{$7,$8,$9,$10}};"


def _product(name: str, convert: Callable[[int], np.float32], ptx: str, k: int) -> Any:
    _cuda.define_collective(name, _multiply_matrices(convert, k))
    return instruction(
        ptx, (f32,) * 4, (u32,) * (3 * k // 8) + (f32,) * 4, collective_meaning(name), is_collective=True
    )


multiply_halves = _product("multiply_halves", _half_value, _LONG.format("f16"), 16)
multiply_bfloats = _product("multiply_bfloats", _bfloat_value, _LONG.format("bf16"), 16)
multiply_thin_halves = _product("multiply_thin_halves", _half_value, _THIN.format("f16"), 8)
multiply_thin_bfloats = _product("multiply_thin_bfloats", _bfloat_value, _THIN.format("bf16"), 8)


# 8 x 8 matrices of 16-bit numbers: lane 4 g + t holds columns 2 t and 2 t + 1 of row g.
def _transpose(args: list[Any]) -> list[Any]:
    words = np.array([[int(arg[0]) & 0xFFFF, int(arg[0]) >> 16] for arg in args], np.uint32)
    turned = words.reshape(8, 8).T.reshape(32, 2)
    return [int(low) | int(high) << 16 for low, high in turned]


_cuda.define_collective("transpose", _transpose)
transpose_halves = instruction(
    "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", u32, (u32,), collective_meaning("transpose"), is_collective=True
)


# Four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8 i + r gives the address of row r of matrix i. Lane
# 4 g + t gets of each columns 2 t and 2 t + 1 of row g or, turned, rows 2 t and 2 t + 1 of column g.
def _load_four(is_turned: bool) -> Callable[[list[Any]], list[Any]]:
    def meaning(args: list[Any]) -> list[Any]:
        rows = np.array([arg[0].read(np.uint16, 8) for arg in args]).astype(np.uint32).reshape(4, 8, 8)
        halves = (rows.transpose(0, 2, 1) if is_turned else rows).reshape(4, 32, 2)
        words = halves[..., 0] | halves[..., 1] << np.uint32(16)
        return [tuple(words[:, lane].tolist()) for lane in range(32)]

    return meaning


def _four_matrices(name: str, kind: str, is_turned: bool) -> Any:
    _cuda.define_collective(name, _load_four(is_turned))
    return instruction(
        f"ldmatrix.sync.aligned.m8n8.x4{kind}.shared.b16 {{$0, $1, $2, $3}}, [$4];",
        (u32,) * 4,
        (u32,),
        collective_meaning(name),
        touches_memory=True,
        is_collective=True,
    )


load_matrices = _four_matrices("load_matrices", "", False)
load_turned_matrices = _four_matrices("load_turned_matrices", ".trans", True)
