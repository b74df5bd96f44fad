"""The simulator finds what it is there to find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from turbocode.kernels import _ptx, _ptx_bits, _ptx_copies, _ptx_matrices
from turbocode.kernels._cuda import Address, at, cuda, kernel, shared_address, types
from turbocode.kernels._simulator import Deadlock

N = 64
float32, uint32, uint64 = types.float32, types.uint32, types.uint64


def reversing(has_barrier: bool) -> Any:
    @kernel()
    def reverse(source: Any, target: Any) -> None:
        kept = cuda.shared.array(N, float32)
        i = uint32(cuda.threadIdx.x)
        kept[i] = _ptx.load_f32(source + uint64(i * 4))
        if has_barrier:
            cuda.syncthreads()
        _ptx.store_f32(target + uint64(i * 4), kept[N - 1 - i])

    return reverse


def test_a_missing_barrier_shows() -> None:
    x, y = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    reversing(True).launch(1, N, Address.of(x), Address.of(y))
    np.testing.assert_array_equal(y, x[::-1])
    reversing(False).launch(1, N, Address.of(x), Address.of(y))
    assert (y != x[::-1]).any()


def test_shared_memory_begins_poisoned() -> None:
    @kernel()
    def copy(target: Any) -> None:
        kept = cuda.shared.array(N, uint32)
        i = uint32(cuda.threadIdx.x)
        _ptx.store_u32(target + uint64(i * 4), kept[i])

    y = np.zeros(N, np.uint32)
    copy.launch(2, N, Address.of(y))
    assert (y == 0xCDCDCDCD).all()


def test_a_collective_that_not_all_lanes_reach() -> None:
    @kernel()
    def diverge(target: Any) -> None:
        if uint32(cuda.threadIdx.x) < 16:
            _ptx.sync_warp()

    with pytest.raises(Deadlock, match=r"sync at test_simulator\.py:\d+"):
        diverge.launch(1, 32, Address.of(np.zeros(1)))


@pytest.mark.parametrize("byte", [1, 256])
def test_misaligned_and_outside_access(byte: int) -> None:
    @kernel()
    def read(source: Any) -> None:
        _ptx.load_u32(source + uint64(byte))

    with pytest.raises(IndexError):
        read.launch(1, 1, Address.of(np.zeros(16, np.uint32)))


@pytest.mark.parametrize("k", [8, 16])
def test_tensor_cores_multiply(k: int, rng: np.random.Generator) -> None:
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((16, k), (k, 8)))
    c, d = np.ones((16, 8), np.float32), np.zeros((16, 8), np.float32)
    product = _ptx_matrices.multiply_halves if k == 16 else _ptx_matrices.multiply_thin_halves

    @kernel()
    def multiply(left: Any, right: Any, start: Any, target: Any) -> None:
        lane = uint32(cuda.threadIdx.x)
        g, t = lane // 4, lane % 4
        words = [
            _ptx.load_u32(left + uint64(row * 2 * k + column * 2))
            for row, column in ((g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8))[: k // 4]
        ]
        columns = [_ptx.load_u32(right + uint64(g * 2 * k + row * 2)) for row in (2 * t, 2 * t + 8)[: k // 8]]
        places = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
        begin = [_ptx.load_f32(start + uint64(row * 32 + column * 4)) for row, column in places]
        for (row, column), value in zip(places, product(*words, *columns, *begin), strict=True):
            _ptx.store_f32(target + uint64(row * 32 + column * 4), value)

    columns_first = np.ascontiguousarray(b.T)
    multiply.launch(1, 32, Address.of(a), Address.of(columns_first), Address.of(c), Address.of(d))
    np.testing.assert_array_equal(d, a.astype(np.float32) @ b.astype(np.float32) + 1)


def test_shared_addresses() -> None:
    @kernel()
    def write(target: Any) -> None:
        kept = cuda.shared.array(8, uint32)
        place = shared_address(kept, 2)
        _ptx.store_shared_u32(at(place, 4), uint32(7))
        _ptx.store_u32(target, kept[3])

    y = np.zeros(1, np.uint32)
    write.launch(1, 1, Address.of(y))
    assert y[0] == 7


@pytest.mark.parametrize("waits", [True, False])
def test_copies_arrive_when_they_are_waited_for(waits: bool) -> None:
    wait = _ptx_copies.wait_for_copies(0)

    @kernel()
    def copy(source: Any, target: Any) -> None:
        kept = cuda.shared.array(4, uint32)
        _ptx_copies.copy_async_whole(shared_address(kept, 0), source)
        _ptx_copies.close_copies()
        if waits:
            wait()
        _ptx.store_u32(target, kept[3])

    x, y = np.array([1, 2, 3, 4], np.uint32), np.zeros(1, np.uint32)
    copy.launch(1, 1, Address.of(x), Address.of(y))
    assert y[0] == (4 if waits else 0xCDCDCDCD)


def test_a_copy_reads_whole_words() -> None:
    @kernel()
    def copy(source: Any) -> None:
        kept = cuda.shared.array(4, uint32)
        _ptx_copies.copy_async_whole(shared_address(kept, 0), source + uint64(16))

    with pytest.raises(IndexError, match="bytes 16 to 32 of an array of 24"):
        copy.launch(1, 1, Address.of(np.zeros(6, np.uint32)))


def test_instructions_on_bits() -> None:
    a, b = 0x80FF0123, 0x7F00FF80
    assert _ptx_bits.funnel_shift_left(a, b, 3) == (b << 3 | a >> 29) & 0xFFFFFFFF
    assert _ptx.funnel_shift_right(a, b, 8) == (a >> 8 | b << 24) & 0xFFFFFFFF
    assert _ptx.select_bytes(a, b, 0x7150) == (b >> 24) << 24 | (a >> 8 & 0xFF) << 16 | (b >> 8 & 0xFF) << 8 | a & 0xFF
    assert _ptx.select_bytes(a, b, 0xFDB9) == 0x00FFFF00  # signs of bytes 1 and 3 of each
    assert _ptx_bits.choose_bits(0xFF, a, b) == (a & 0xFF) | (b & ~0xFF)
    assert _ptx_bits.max_sizes(0xC0003C00, 0x7C013800) == 0x7FFF3C00  # (1, -2) and (.5, NaN)
    near, far = np.float32(2.0**15 + 0.5), np.float32(1 - 2.0**-24)
    assert _ptx.add_toward_zero(far, near) == np.float32(2.0**15 + 1.5 - 2.0**-8)
    assert _ptx.add_toward_zero(-far, -near) == -np.float32(2.0**15 + 1.5 - 2.0**-8)
