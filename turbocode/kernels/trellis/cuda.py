"""Trellis-coded quantization on a GPU: what `scalar.cuda.Encoder` runs, and the search alone, for training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.kernels import _launch
from turbocode.kernels._graph import Gpu
from turbocode.kernels.scalar import decode_lanes
from turbocode.kernels.scalar.decode_lanes import DecodeVariant, Placement
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.trellis import encode_kernel, encode_tensor, search_lanes, tensor_layout
from turbocode.kernels.trellis.search_kernel import search_kernel
from turbocode.kernels.trellis.trellis import Trellis

_GROUPS_PER_LAUNCH = 1 << 18


def encode_choice(variant: EncodeVariant) -> tuple[Any, int, int]:
    """(kernel, groups a block handles, threads of a block) of the encoder whose blocks are the CPU's."""
    return (*encode_kernel.encode_kernel(variant), search_lanes.THREADS)


def fast_encode_choice(variant: EncodeVariant) -> tuple[Any, int, int]:
    """The same with the search on the tensor cores, for variants that it knows; the exact encoder for others."""
    if encode_tensor.can_encode(variant):
        return (*encode_tensor.encode_kernel(variant), tensor_layout.THREADS)
    return encode_choice(variant)


def decode_choice(placement: Placement, table: NDArray[np.float32]) -> Any:
    """What chooses the decoder that reads this table of states' values at `placement`."""
    values = np.ascontiguousarray(table, np.float32).tobytes() if placement is Placement.CONSTANT else b""

    def choose(variant: DecodeVariant) -> tuple[Any, int, int]:
        return (*decode_lanes.decode_kernel(variant._replace(placement=placement), values), decode_lanes.THREADS)

    return choose


def viterbi(
    u: NDArray[np.float32],
    table: NDArray[np.float32],
    trellis: Trellis,
    *,
    weights: NDArray[np.float32] | None = None,
    approach: int | None = None,
    device: int = 0,
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """(states (n, g), costs (n,)) as cpu.viterbi gives them, bit for bit, from and to host arrays."""
    u = np.ascontiguousarray(u, dtype=np.float32)
    n, g = u.shape
    if g % 4:
        raise OptionError(f"groups of {g} samples; the GPU's search takes multiples of 4")
    taken = (approach or trellis.approach(g)) if trellis.is_tail_biting else 0
    kernel, per_block, threads = search_kernel(trellis, g, taken, weights is not None)
    gpu = Gpu(device)
    size = min(n, _GROUPS_PER_LAUNCH)
    samples, factors = gpu.empty((size, g), "float32"), gpu.empty((size, g), "float32") if weights is not None else None
    found, found_costs = gpu.empty((size, g), "uint16"), gpu.empty((size,), "float32")
    values = gpu.empty((trellis.n_states,), "float32")
    gpu.upload(np.ascontiguousarray(table, dtype=np.float32), values)
    states, costs = np.empty((n, g), np.int16), np.empty(n, np.float32)
    for start in range(0, n, size):
        part = slice(start, min(n, start + size))
        count = part.stop - start
        gpu.upload(u[part], samples)
        if factors is not None and weights is not None:
            gpu.upload(np.ascontiguousarray(weights[part], dtype=np.float32), factors)
        pointers = (samples.pointer, factors.pointer if factors else 0, values.pointer, found.pointer)
        args = (*pointers, found_costs.pointer, count)
        _launch.launch(kernel, -(-count // per_block), threads, device, gpu.stream, args)
        gpu.download(found, states[part])
        gpu.download(found_costs, costs[part])
        gpu.wait()
    return states, costs
