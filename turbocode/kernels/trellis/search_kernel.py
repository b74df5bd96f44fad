"""The kernel that searches paths alone: samples in, states and costs out. Training and tests use it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, kernel, shared_address, types
from turbocode.kernels.trellis.search_lanes import lane_search
from turbocode.kernels.trellis.trellis import Trellis

N_ARGS = 6

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ONE = np.float32(1.0)


@functools.cache
def search_kernel(trellis: Trellis, g: int, approach: int, is_weighted: bool) -> tuple[Any, int, int]:
    """(kernel, groups a block handles, threads of a block) for groups of g samples; approach as in search_lanes.py.

    Arguments: u, weights float32 (n, g), table float32 (2**L,), states uint16 (n, g), costs float32 (n,), n
    """
    found_by = lane_search(trellis, g, approach, is_weighted)
    search, n_threads, per_block = found_by.search, found_by.group_threads, found_by.per_block
    threads = found_by.threads
    head = 2 * g + -(-g // 2)  # samples, weights, uint16 states
    head = -(-head // 4) * 4
    n_words = -(-(head + found_by.words) // 4) * 4
    n_scratch = n_words * per_block

    @kernel(launch_bounds=(threads, 4))
    def find_paths(u: Any, weights: Any, table: Any, states: Any, costs: Any, n: Any) -> None:
        scratch = cuda.shared.array(n_scratch, float32)
        thread = uint32(cuda.threadIdx.x)
        mine, i = uint32(thread // uint32(n_threads)), uint32(thread & uint32(n_threads - 1))
        group = uint32(uint32(uint32(cuda.blockIdx.x) * uint32(per_block)) + mine)
        near = uint32(min(uint64(group), uint64(n - uint64(1))))  # groups beyond the end go along, for the barriers
        row = uint64(near) * uint64(4 * g)
        samples = shared_address(scratch, uint32(mine * uint32(n_words)))
        factors, path = at(samples, uint32(4 * g)), at(samples, uint32(8 * g))
        j = i
        while j < uint32(g):
            byte = uint32(j * uint32(4))
            _ptx.store_shared_f32(at(samples, byte), _ptx.load_f32(u + (row + uint64(byte))))
            if is_weighted:
                _ptx.store_shared_f32(at(factors, byte), _ptx.load_f32(weights + (row + uint64(byte))))
            j = uint32(j + uint32(n_threads))
        cuda.syncthreads()
        cost = search(samples, _ONE, factors, table, at(samples, uint32(4 * head)), path, thread)
        cuda.syncthreads()
        if group < n:
            j = i
            while j < uint32(g):
                state = _ptx.load_shared_u16(at(path, uint32(j * uint32(2))))
                _ptx.store_u16(states + (uint64(group) * uint64(2 * g) + uint64(j) * uint64(2)), state)
                j = uint32(j + uint32(n_threads))
            if i == uint32(0):
                _ptx.store_f32(costs + uint64(group) * uint64(4), cost)

    return find_paths, per_block, threads
