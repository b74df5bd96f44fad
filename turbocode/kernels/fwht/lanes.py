"""A group in the registers of a few lanes of a warp, for groups whose size is a power of two.

A chunk is eight values that lie side by side. Lane t of the T lanes that share a group of g values holds the chunks
t, T + t, 2 T + t, ...: its value v is element 8 T (v // 8) + 8 t + v % 8. So T lanes read T chunks with one 128-bit
load each (two for float32), bits 0 to 2 of an element's number are register bits, the next log2 T are lane bits, the
rest registers again.

`lanes_for(g)` makes the functions for one g; each is compiled into straight code, registers being indexed by constants.
Arithmetic and its order are those of fwht/cpu.py and scalar/steps.py: same bits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import cuda, device, types

CHUNK = 8
MAX_VALUES = 32  # registers of a lane that hold values
FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2  # types of values in memory
VALUE_BYTES = (2, 2, 4)

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


class Lanes(NamedTuple):
    """group_size : g; lanes : T; values : V = g / T, registers of a lane

    The functions take a register array r (V,) and the lane's number t within its group where they need it.
    butterflies(r, t) : unnormalised transform in place
    flip(r, mask) : change the signs of the values whose bit in the uint32 mask is set
    scale(r, factor) : multiply each value
    dot(a, b) : sum of the products over the group, in every lane
    """

    group_size: int
    lanes: int
    values: int
    butterflies: Any
    flip: Any
    scale: Any
    dot: Any

    def masks(self, signs: NDArray[np.float32]) -> NDArray[np.uint32]:
        """(T,): bit v of mask t is set where the sign of lane t's value v is negative."""
        v, t = np.arange(self.values), np.arange(self.lanes)[:, None]
        element = CHUNK * self.lanes * (v // CHUNK) + CHUNK * t + v % CHUNK
        negative = (signs[element] < 0).astype(np.uint64) << v.astype(np.uint64)
        return negative.sum(axis=1).astype(np.uint32)


def is_power_of_two(n: int) -> bool:
    """Whether n is one."""
    return n > 0 and n & (n - 1) == 0


def _register_stage(n_values: int, distance: int) -> Any:
    """Butterflies between registers `distance` apart."""

    @device
    def stage(r: Any) -> None:
        for pair in range(n_values // 2):
            low = (pair // distance) * 2 * distance + pair % distance
            a, b = r[low], r[low + distance]
            r[low] = _ptx.add(a, b)
            r[low + distance] = _ptx.subtract(a, b)

    return stage


def _lane_stage(n_values: int, distance: int) -> Any:
    """Butterflies between lanes whose numbers differ in the bit `distance`."""
    plus, minus = np.float32(1.0), np.float32(-1.0)

    @device
    def stage(r: Any, t: Any) -> None:
        sign = minus if uint32(t & uint32(distance)) != uint32(0) else plus
        for v in range(n_values):
            other = _ptx.shuffle_xor_f32(r[v], uint32(distance))
            r[v] = _ptx.multiply_add(r[v], sign, other)  # exact product: one rounding, that of the sum

    return stage


@device
def _nothing(r: Any) -> None:
    pass


@device
def _nothing_in_lanes(r: Any, t: Any) -> None:
    pass


def _butterflies(n_lanes: int, n_values: int) -> Any:
    near = [_register_stage(n_values, h) for h in (1, 2, 4)]
    across = [_lane_stage(n_values, 1 << b) for b in range(n_lanes.bit_length() - 1)]
    far = [_register_stage(n_values, CHUNK << b) for b in range((n_values // CHUNK).bit_length() - 1)]
    across += [_nothing_in_lanes] * (5 - len(across))
    far += [_nothing] * (2 - len(far))
    n1, n2, n4 = near
    a0, a1, a2, a3, a4 = across
    f0, f1 = far

    @device
    def butterflies(r: Any, t: Any) -> None:
        n1(r)
        n2(r)
        n4(r)
        a0(r, t)
        a1(r, t)
        a2(r, t)
        a3(r, t)
        a4(r, t)
        f0(r)
        f1(r)

    return butterflies


def _fold_registers(count: int) -> Any:
    """Add the upper half of p[:2 count] to the lower."""

    @device
    def fold(p: Any) -> None:
        for j in range(count):
            p[j] = _ptx.add(p[j], p[j + count])

    return fold


def _fold_lanes(distance: int) -> Any:
    @device
    def fold(p: Any) -> None:
        for j in range(CHUNK):
            p[j] = _ptx.add(p[j], _ptx.shuffle_xor_f32(p[j], uint32(distance)))

    return fold


def sums_of_products(n_lanes: int, n_values: int) -> Any:
    """The function that adds up p (V,), products per value, over the group as scalar/steps.py: sum_terms does."""
    folds = [_fold_registers(CHUNK << b) for b in reversed(range((n_values // CHUNK).bit_length() - 1))]
    folds += [_fold_lanes(1 << b) for b in reversed(range(n_lanes.bit_length() - 1))]
    folds += [_nothing] * (7 - len(folds))
    f0, f1, f2, f3, f4, f5, f6 = folds

    @device
    def total(p: Any) -> Any:
        f0(p)
        f1(p)
        f2(p)
        f3(p)
        f4(p)
        f5(p)
        f6(p)
        result = p[0]
        for j in range(1, CHUNK):
            result = _ptx.add(result, p[j])
        return result

    return total


@functools.cache
def lanes_for(group_size: int, max_values: int = MAX_VALUES) -> Lanes:
    """The functions for groups of `group_size`, a power of two from 16 to 1024, with at most max_values registers."""
    n_lanes = max(2, group_size // max_values)
    n_lanes = n_lanes if group_size // n_lanes >= CHUNK else group_size // CHUNK
    if n_lanes < 4 and group_size >= 4 * CHUNK:
        n_lanes = 4  # fewer lanes would load less than a sector at once
    n_values = group_size // n_lanes
    total = sums_of_products(n_lanes, n_values)

    @device
    def flip(r: Any, mask: Any) -> None:
        for v in range(n_values):
            sign = uint32(uint32(mask << uint32(31 - v)) & uint32(0x80000000))
            r[v] = _ptx.float_from_bits(uint32(_ptx.float_bits(r[v]) ^ sign))

    @device
    def scale(r: Any, factor: Any) -> None:
        for v in range(n_values):
            r[v] = _ptx.multiply(r[v], factor)

    @device
    def dot(a: Any, b: Any) -> Any:
        p = cuda.local.array(n_values, float32)
        for v in range(n_values):
            p[v] = _ptx.multiply(a[v], b[v])
        return total(p)

    return Lanes(group_size, n_lanes, n_values, _butterflies(n_lanes, n_values), flip, scale, dot)


@functools.cache
def loader(value_type: int, n_lanes: int, n_values: int) -> Any:
    """load(address, r): r (V,) from the group whose lane's first chunk is at the uint64 address."""
    if value_type == FLOAT32:

        @device
        def load(address: Any, r: Any) -> None:
            for quad in range(n_values // 4):
                words = _ptx.stream_u32x4(address + uint64(quad // 2 * 32 * n_lanes + quad % 2 * 16))
                for e in range(4):
                    r[4 * quad + e] = _ptx.float_from_bits(words[e])

    elif value_type == FLOAT16:

        @device
        def load(address: Any, r: Any) -> None:
            for chunk in range(n_values // CHUNK):
                words = _ptx.stream_u32x4(address + uint64(chunk * 16 * n_lanes))
                for e in range(4):
                    r[8 * chunk + 2 * e] = _ptx.low_half(words[e])
                    r[8 * chunk + 2 * e + 1] = _ptx.high_half(words[e])

    else:

        @device
        def load(address: Any, r: Any) -> None:
            for chunk in range(n_values // CHUNK):
                words = _ptx.stream_u32x4(address + uint64(chunk * 16 * n_lanes))
                for e in range(4):
                    r[8 * chunk + 2 * e] = _ptx.float_from_bits(uint32(words[e] << uint32(16)))
                    r[8 * chunk + 2 * e + 1] = _ptx.float_from_bits(uint32(words[e] & uint32(0xFFFF0000)))

    return load


@functools.cache
def storer(value_type: int, n_lanes: int, n_values: int) -> Any:
    """store(address, r): the inverse of `loader`, rounding to nearest, ties to even."""
    if value_type == FLOAT32:

        @device
        def store(address: Any, r: Any) -> None:
            for quad in range(n_values // 4):
                _ptx.store_u32x4(
                    address + uint64(quad // 2 * 32 * n_lanes + quad % 2 * 16),
                    _ptx.float_bits(r[4 * quad]),
                    _ptx.float_bits(r[4 * quad + 1]),
                    _ptx.float_bits(r[4 * quad + 2]),
                    _ptx.float_bits(r[4 * quad + 3]),
                )

        return store
    pack = _ptx.pack_halves if value_type == FLOAT16 else _ptx.pack_bfloats

    @device
    def store_packed(address: Any, r: Any) -> None:
        for chunk in range(n_values // CHUNK):
            first = CHUNK * chunk
            _ptx.store_u32x4(
                address + uint64(chunk * 16 * n_lanes),
                pack(r[first], r[first + 1]),
                pack(r[first + 2], r[first + 3]),
                pack(r[first + 4], r[first + 5]),
                pack(r[first + 6], r[first + 7]),
            )

    return store_packed
