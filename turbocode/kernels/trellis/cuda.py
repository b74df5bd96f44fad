"""The Viterbi algorithm on an NVIDIA GPU, as training needs it: host arrays in, host arrays out, as cpu.viterbi.

A block searches one group after the other. Its costs lie twice in shared memory, read from one, written to the other; a
thread takes every blockDim-th set of 2**k predecessors, which decide for the 2**k states that share their newest bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.kernels import _cuda
from turbocode.kernels._cuda import add, cuda, multiply
from turbocode.kernels.trellis.trellis import Trellis

THREADS = 128
_BLOCKS_PER_MULTIPROCESSOR = 16
_MAX_SCRATCH_BYTES = 1 << 30
_GROUPS_PER_LAUNCH = 1 << 16


@functools.cache
def _kernel(bits: int, states_log2: int, is_ring: bool, is_weighted: bool, threads: int) -> Any:
    """The kernel for one trellis, its sizes compiled in."""
    k, length = bits, states_log2
    n_states, n_costs, n_sets, size = 1 << length, 2 << length, 1 << (length - k), 1 << bits
    infinity = np.float32(np.inf)

    @cuda.jit
    def search(u: Any, weights: Any, table: Any, approach: int, choices: Any, states: Any, costs: Any) -> None:
        """u, weights (n, g); choices uint8 (n_blocks, steps, n_sets): scratch; states int16 (n, g), costs (n,): out"""
        cost = cuda.shared.array(n_costs, dtype=np.float32)
        thread_best = cuda.shared.array(threads, dtype=np.float32)
        thread_state = cuda.shared.array(threads, dtype=np.int32)
        overlap = cuda.shared.array(1, dtype=np.int32)
        me = cuda.threadIdx.x
        n, g = u.shape
        chosen = choices[cuda.blockIdx.x]
        for group in range(cuda.blockIdx.x, n, cuda.gridDim.x):
            for search_pass in range(2 if is_ring else 1):
                is_seam = is_ring and search_pass == 0
                start = g - approach if is_seam else 0
                count = 2 * approach if is_seam else g
                cuda.syncthreads()
                for state in range(me, n_states, threads):
                    is_allowed = is_seam or not is_ring or (state >> k) == overlap[0]
                    cost[state] = np.float32(0.0) if is_allowed else infinity
                cuda.syncthreads()
                source, target = 0, n_states
                for step in range(count):
                    t = (start + step) % g
                    x = u[group, t]
                    for first in range(me, n_sets, threads):
                        best = cost[source + (first << k)]
                        branch = 0
                        for p in range(1, size):
                            other = cost[source + ((first << k) | p)]
                            if other < best:
                                best = other
                                branch = p
                        chosen[step, first] = branch
                        for o in range(size):
                            state = first | (o << (length - k))
                            distance = add(x, -table[state])
                            square = multiply(distance, distance)
                            if is_weighted:
                                square = multiply(square, weights[group, t])
                            cost[target + state] = add(best, square)
                    source, target = target, source
                    cuda.syncthreads()
                share = (n_states + threads - 1) // threads
                least, lowest = infinity, np.int32(0)
                for state in range(me * share, min(n_states, (me + 1) * share)):
                    is_allowed = is_seam or not is_ring or (state >> k) == overlap[0]
                    if is_allowed and cost[source + state] < least:
                        least = cost[source + state]
                        lowest = np.int32(state)
                thread_best[me] = least
                thread_state[me] = lowest
                cuda.syncthreads()
                if me == 0:
                    for other_thread in range(1, threads):
                        if thread_best[other_thread] < least:
                            least = thread_best[other_thread]
                            lowest = thread_state[other_thread]
                    last = approach - 1 if is_seam else 0
                    for step in range(count - 1, last - 1, -1):
                        if not is_seam:
                            states[group, step] = lowest
                        if step > last:
                            predecessors = lowest & (n_sets - 1)
                            lowest = (predecessors << k) | np.int32(chosen[step, predecessors])
                    if is_seam:
                        overlap[0] = lowest >> k
                    else:
                        costs[group] = least

    return search


def viterbi(
    u: NDArray[np.float32],
    table: NDArray[np.float32],
    trellis: Trellis,
    *,
    weights: NDArray[np.float32] | None = None,
    approach: int | None = None,
    threads: int = THREADS,
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """(states (n, g), costs (n,)) as cpu.viterbi gives them, bit for bit. Copies to the device and back."""
    u = np.ascontiguousarray(u, dtype=np.float32)
    n, g = u.shape
    taken = (approach or trellis.approach(g)) if trellis.is_tail_biting else 0
    n_steps, n_sets = max(g, 2 * taken), 1 << trellis.overlap_bits
    n_blocks = min(n, _cuda.multiprocessors() * _BLOCKS_PER_MULTIPROCESSOR, _MAX_SCRATCH_BYTES // (n_steps * n_sets))
    search = _kernel(trellis.bits, trellis.states_log2, trellis.is_tail_biting, weights is not None, threads)
    choices = cuda.device_array((n_blocks, n_steps, n_sets), np.uint8)
    table_on_device = cuda.to_device(np.ascontiguousarray(table, dtype=np.float32))
    states, costs = np.empty((n, g), np.int16), np.empty(n, np.float32)
    for start in range(0, n, _GROUPS_PER_LAUNCH):
        part = slice(start, min(n, start + _GROUPS_PER_LAUNCH))
        u_on_device = cuda.to_device(u[part])
        weights_on_device = u_on_device if weights is None else cuda.to_device(np.float32(weights[part]))
        found = cuda.device_array(u_on_device.shape, np.int16)
        found_costs = cuda.device_array(len(u_on_device), np.float32)
        search[n_blocks, threads](u_on_device, weights_on_device, table_on_device, taken, choices, found, found_costs)
        states[part], costs[part] = found.copy_to_host(), found_costs.copy_to_host()
    return states, costs
