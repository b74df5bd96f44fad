"""A rotation on the tensor cores, for groups of 32, 64 and 128 values of float16 or bfloat16, of which a warp holds
eight.

As in lanes.py, lane t of a group's four holds the chunks t, 4 + t, ... of eight values, two to a register. The four
registers of a chunk are one operand of 16 x 16 elements: rows g and g + 8 hold the values of group g whose number has
bit 1 clear and set. A product mixes bit 0 (the halves of a register), bit 2 (two registers), bits 3 and 4 (the lanes);
adding up products of all chunks, with signs, does bits 5 and 6; one addition in registers does bit 1.

Products by 1 and -1 are exact and their sums nearly float32, but in another order than the CPU's: results differ in the
last bit now and then.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels import _ptx
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
    transform(words, columns, r) : set r (values,) to the unnormalised transform of the packed words
    transform_sum(words, rest, columns, r) : that of words + rest
    """

    values: int
    words: int
    hadamard: Any
    transform: Any
    transform_sum: Any


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
    n_chunks = n_values // CHUNK
    is_bfloat = value_type == BFLOAT16
    multiply = _ptx.multiply_bfloats if is_bfloat else _ptx.multiply_halves
    one = 0x3F80 if is_bfloat else 0x3C00

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

    def product(chunk: int, tile: int) -> Any:
        """add(words, columns, d) : d plus what the words' chunks give to output `chunk`, columns of `tile`."""
        offsets = tuple(4 * ((chunk & i).bit_count() & 1) + 2 * tile for i in range(n_chunks))
        o0, o1, o2, o3 = offsets + (0,) * (4 - n_chunks)

        @device
        def one_chunk(words: Any, columns: Any, i: Any, offset: Any, d: Any) -> Any:
            return multiply(
                words[4 * i],
                words[4 * i + 1],
                words[4 * i + 2],
                words[4 * i + 3],
                columns[offset],
                columns[offset + 1],
                d[0],
                d[1],
                d[2],
                d[3],
            )

        @device
        def add(words: Any, columns: Any, d: Any) -> Any:
            d = one_chunk(words, columns, 0, o0, d)
            if n_chunks > 1:
                d = one_chunk(words, columns, 1, o1, d)
            if n_chunks > 2:
                d = one_chunk(words, columns, 2, o2, d)
                d = one_chunk(words, columns, 3, o3, d)
            return d

        return add

    def store(chunk: int, tile: int) -> Any:
        v = CHUNK * chunk + 4 * tile

        @device
        def last_stage(d: Any, r: Any) -> None:
            r[v], r[v + 1] = d[0] + d[2], d[1] + d[3]
            r[v + 2], r[v + 3] = d[0] - d[2], d[1] - d[3]

        return last_stage

    @device
    def nothing(words: Any, rest: Any, columns: Any, r: Any) -> None:
        pass

    def part(chunk: int, tile: int, has_rest: bool) -> Any:
        if chunk >= n_chunks:
            return nothing
        add, last_stage = product(chunk, tile), store(chunk, tile)

        @device
        def compute(words: Any, rest: Any, columns: Any, r: Any) -> None:
            d = add(words, columns, (_ZERO, _ZERO, _ZERO, _ZERO))
            if has_rest:
                d = add(rest, columns, d)
            last_stage(d, r)

        return compute

    def whole(has_rest: bool) -> Any:
        p0, p1, p2, p3, p4, p5, p6, p7 = (part(chunk, tile, has_rest) for chunk in range(4) for tile in range(2))

        @device
        def compute(words: Any, rest: Any, columns: Any, r: Any) -> None:
            p0(words, rest, columns, r)
            p1(words, rest, columns, r)
            p2(words, rest, columns, r)
            p3(words, rest, columns, r)
            p4(words, rest, columns, r)
            p5(words, rest, columns, r)
            p6(words, rest, columns, r)
            p7(words, rest, columns, r)

        return compute

    alone, summed = whole(False), whole(True)

    @device
    def transform(words: Any, columns: Any, r: Any) -> None:
        alone(words, words, columns, r)

    return TensorLanes(n_values, n_words, hadamard, transform, summed)
