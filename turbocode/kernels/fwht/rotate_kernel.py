"""The kernels that rotate groups on a GPU: in registers for powers of two, in shared memory for the other sizes."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.kernels._cuda import cuda, kernel, shared_address, types
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.in_shared import in_shared
from turbocode.kernels.fwht.lanes import VALUE_BYTES, lanes_for, loader, storer
from turbocode.kernels.vectors import N_GEOMETRY_ARGS, group_address

THREADS = 256
N_ARGS = 2 + N_GEOMETRY_ARGS
# Registers of a lane that hold values: few, so that many warps have their loads under way.
_VALUES = 16

float32, uint32, uint64 = types.float32, types.uint32, types.uint64


@functools.cache
def rotate_kernel(
    rotation: Rotation, is_inverse: bool, value_type: int, out_type: int, reads_strided: bool, writes_strided: bool
) -> tuple[Any, int]:
    """(kernel, groups a block handles) for groups of a power of two up to 1024; value types are of lanes.py."""
    g = rotation.group_size
    lanes = lanes_for(g, _VALUES)
    n_lanes, n_values = lanes.lanes, lanes.values
    load, store = loader(value_type, n_lanes, n_values), storer(out_type, n_lanes, n_values)
    before, after = rotation.signs_before, rotation.signs_after
    first_masks, last_masks = (lanes.masks(s) for s in ((after, before) if is_inverse else (before, after)))
    is_signed, factor = bool(first_masks.any() or last_masks.any()), rotation.scale
    in_bytes, out_bytes = VALUE_BYTES[value_type], VALUE_BYTES[out_type]
    in_chunk, out_chunk = 8 * in_bytes, 8 * out_bytes
    groups_per_block = THREADS // n_lanes
    read_at, write_at = group_address(reads_strided, g * in_bytes), group_address(writes_strided, g * out_bytes)
    butterflies, flip, scale = lanes.butterflies, lanes.flip, lanes.scale

    @kernel(launch_bounds=(THREADS, 4))
    def rotate(
        source: Any,
        target: Any,
        n_groups: Any,
        per_vector: Any,
        n_tokens: Any,
        n_heads: Any,
        in_token: Any,
        in_head: Any,
        in_seq: Any,
        out_token: Any,
        out_head: Any,
        out_seq: Any,
        capacity: Any,
        starts: Any,
    ) -> None:
        r = cuda.local.array(n_values, float32)
        t = uint32(cuda.threadIdx.x) & uint32(n_lanes - 1)
        group = uint32(cuda.blockIdx.x) * uint32(groups_per_block) + uint32(cuda.threadIdx.x) // uint32(n_lanes)
        is_mine = group < n_groups
        group = uint32(
            min(uint64(group), uint64(n_groups - uint64(1)))
        )  # lanes beyond the end go along, for the shuffles
        load(
            read_at(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq)
            + uint64(t * uint32(in_chunk)),
            r,
        )
        if is_signed:
            flip(r, cuda.const.array_like(first_masks)[t])
        butterflies(r, t)
        scale(r, factor)
        if is_signed:
            flip(r, cuda.const.array_like(last_masks)[t])
        if is_mine:
            store(
                write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq)
                + uint64(t * uint32(out_chunk)),
                r,
            )

    return rotate, groups_per_block


@functools.cache
def rotate_shared_kernel(
    rotation: Rotation, is_inverse: bool, value_type: int, out_type: int, reads_strided: bool, writes_strided: bool
) -> tuple[Any, int]:
    """(kernel, groups a block handles) for groups of any size, a warp a group in shared memory; same arguments."""
    g = rotation.group_size
    spot, out = in_shared(rotation, value_type, is_inverse), in_shared(rotation, out_type, is_inverse)
    load, transform, store = spot.load, spot.transform, out.store
    read_at = group_address(reads_strided, g * VALUE_BYTES[value_type])
    write_at = group_address(writes_strided, g * VALUE_BYTES[out_type])
    n_warps = THREADS // 32
    n_scratch = g * n_warps

    @kernel(launch_bounds=(THREADS, 4))
    def rotate(
        source: Any,
        target: Any,
        n_groups: Any,
        per_vector: Any,
        n_tokens: Any,
        n_heads: Any,
        in_token: Any,
        in_head: Any,
        in_seq: Any,
        out_token: Any,
        out_head: Any,
        out_seq: Any,
        capacity: Any,
        starts: Any,
    ) -> None:
        scratch = cuda.shared.array(n_scratch, float32)
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        group = uint32(uint32(cuda.blockIdx.x) * uint32(n_warps) + thread // uint32(32))
        y = shared_address(scratch, uint32(uint32(thread // uint32(32)) * uint32(g)))
        if group < n_groups:  # the same for a whole warp
            load(read_at(source, group, per_vector, n_tokens, n_heads, in_token, in_head, in_seq), y, lane)
            transform(y, lane)
            store(write_at(target, group, per_vector, n_tokens, n_heads, out_token, out_head, out_seq), y, lane)

    return rotate, n_warps
