"""A rotation on the tensor cores, for groups of 32, 64 and 128 values of float16 or bfloat16, of which a warp holds
eight.

As in lanes.py, lane t of a group's four holds the chunks t, 4 + t, ... of eight values, two to a register. The four
registers of a chunk are one operand of 16 x 16 elements: rows g and g + 8 hold the values of group g whose number has
bit 1 clear and set. A product mixes bit 0 (the halves of a register), bit 2 (two registers), bits 3 and 4 (the lanes);
adding up products of all chunks, with signs, does bits 5 and 6. Bit 1, the last stage, is left to the caller, who has
a factor to multiply with: that costs one multiplication and two multiply-adds for two values.

Products by 1 and -1 are exact and their sums nearly float32, but in another order than the CPU's: results differ in the
last bit now and then.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import device, types
from turbocode.kernels.fwht.lanes import BFLOAT16, CHUNK

LANES = 4
GROUPS = 8  # of a warp
SIZES = (32, 64, 128)

float32, uint32 = types.float32, types.uint32
_ZERO = np.float32(0.0)


class TensorLanes(NamedTuple):
    """values : of a lane; words : registers that hold them in pairs

    hadamard(lane, columns) : set columns uint32 (8,) to the lane's part of the matrix of order 16, and of its negative
    transform(words, columns, d) : set d (values,) to the unnormalised transform of the packed words before its last
        stage: of each four d0 ... d3 the stage makes d0 + d2, d1 + d3, d0 - d2, d1 - d3
    square(words, lane) : the sum of the squares of the group's values, in each of its lanes
    """

    values: int
    words: int
    hadamard: Any
    transform: Any
    square: Any


def pair_masks(signs: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(4, words): what flips the signs of lane t's packed words."""
    negative = np.where(signs < 0, 0x8000, 0).astype(np.uint32).reshape(-1, LANES, CHUNK // 2, 2)
    packed = negative[..., 0] | negative[..., 1] << 16
    return np.ascontiguousarray(packed.transpose(1, 0, 2).reshape(LANES, -1).astype(np.uint32))


@functools.cache
def tensor_lanes(group_size: int, value_type: int) -> TensorLanes:
    """The functions for one group size and float16 or bfloat16 words."""
    assert group_size in SIZES, group_size
    n_values, n_words = group_size // LANES, group_size // LANES // 2
    one = 0x3F80 if value_type == BFLOAT16 else 0x3C00

    @device
    def hadamard(lane: Any, columns: Any) -> None:
        t, n = uint32(lane & uint32(3)), uint32(lane >> uint32(2))
        for tile in range(2):
            for half in range(2):
                word = uint32(0)
                for e in range(2):
                    k = uint32(uint32(uint32(2) * t) + uint32(8 * half + e))
                    common = uint32(k & uint32(n + uint32(8 * tile)))
                    sign = uint32(uint32(_ptx.count_bits(common) & uint32(1)) << uint32(15))
                    word = uint32(word | uint32(uint32(uint32(one) | sign) << uint32(16 * e)))
                columns[2 * tile + half] = word
                columns[4 + 2 * tile + half] = uint32(word ^ uint32(0x80008000))

    transform = _transformer(n_values // CHUNK, value_type)
    return TensorLanes(n_values, n_words, hadamard, transform, _squarer(n_values // CHUNK, value_type))


def _transformer(n_chunks: int, value_type: int) -> Any:
    """`transform` of TensorLanes. Outputs that begin with the same sums share them: 22 products for four chunks."""
    multiply = _ptx_matrices.multiply_bfloats if value_type == BFLOAT16 else _ptx_matrices.multiply_halves

    @device
    def step(words: Any, columns: Any, i: Any, column: Any, d: Any) -> Any:
        w = 4 * i
        return multiply(
            words[w],
            words[w + 1],
            words[w + 2],
            words[w + 3],
            columns[column],
            columns[column + 1],
            d[0],
            d[1],
            d[2],
            d[3],
        )

    @device
    def put(found: Any, place: Any, d: Any) -> None:
        for e in range(4):
            d[place + e] = found[e]

    @device
    def transform(words: Any, columns: Any, d: Any) -> None:
        zero = (_ZERO, _ZERO, _ZERO, _ZERO)
        for tile in range(2):
            plus, minus = 2 * tile, 4 + 2 * tile
            first = step(words, columns, 0, plus, zero)
            if n_chunks == 1:
                put(first, 4 * tile, d)
            else:
                even, odd = step(words, columns, 1, plus, first), step(words, columns, 1, minus, first)
                if n_chunks == 2:
                    put(even, 4 * tile, d)
                    put(odd, CHUNK + 4 * tile, d)
                else:
                    s0, s1 = step(words, columns, 2, plus, even), step(words, columns, 2, plus, odd)
                    s2, s3 = step(words, columns, 2, minus, even), step(words, columns, 2, minus, odd)
                    put(step(words, columns, 3, plus, s0), 4 * tile, d)
                    put(step(words, columns, 3, minus, s1), CHUNK + 4 * tile, d)
                    put(step(words, columns, 3, minus, s2), 2 * CHUNK + 4 * tile, d)
                    put(step(words, columns, 3, plus, s3), 3 * CHUNK + 4 * tile, d)

    return transform


def _squarer(n_chunks: int, value_type: int) -> Any:
    """`square` of TensorLanes.

    Of rows times columns that are the same rows again, the diagonal is the squares; two registers, of rows g and g + 8,
    take two products. The four sums stay apart: a shorter chain, and fewer additions that the tensor cores cut off.
    """
    multiply = _ptx_matrices.multiply_thin_bfloats if value_type == BFLOAT16 else _ptx_matrices.multiply_thin_halves

    @device
    def step(words: Any, w: Any, column: Any, d: Any) -> Any:
        return multiply(words[w], words[w + 1], words[column], d[0], d[1], d[2], d[3])

    @device
    def square(words: Any, lane: Any) -> Any:
        zero = (_ZERO, _ZERO, _ZERO, _ZERO)
        a, b, c, d = zero, zero, zero, zero
        for i in range(n_chunks):
            w = 4 * i
            a, b = step(words, w, w, a), step(words, w, w + 1, b)
            c, d = step(words, w + 2, w + 2, c), step(words, w + 2, w + 3, d)
        even, odd = (a[0] + c[0]) + (b[2] + d[2]), (a[1] + c[1]) + (b[3] + d[3])
        row = uint32(lane >> uint32(2))
        mine = odd if uint32(row & uint32(1)) != uint32(0) else even  # lane 4 g + g // 2 holds the diagonal's element g
        return _ptx.shuffle_index_f32(mine, uint32(uint32(row << uint32(2)) + uint32(row >> uint32(1))))

    return square
