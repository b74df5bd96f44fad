"""Merges attention over pieces of a cache by their log-sum-exps: stretches of tokens, or what several GPUs found."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import cuda, kernel, types
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT16, FLOAT32, VALUE_BYTES

THREADS = 128
WARP = 32
N_ARGS = 7

float32, uint32, uint64 = types.float32, types.uint32, types.uint64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_NEVER = np.float32(-np.inf)
_LOG2_E, _LN2 = np.float32(1.0 / np.log(2.0)), np.float32(np.log(2.0))


@functools.cache
def merge_kernel(part_type: int, out_type: int) -> Any:
    """The kernel of THREADS threads, a warp a row. Types are of fwht/lanes.py. Arguments:

    outputs (n_parts, n_rows, head_dim), lses float32 (n_parts, n_rows) -> out (n_rows, head_dim), lse (n_rows,); counts
    """
    part_bytes, out_bytes = VALUE_BYTES[part_type], VALUE_BYTES[out_type]

    @kernel(launch_bounds=(THREADS, 4))
    def merge(outputs: Any, lses: Any, out: Any, lse: Any, n_parts: Any, n_rows: Any, head_dim: Any) -> None:
        thread = uint32(cuda.threadIdx.x)
        lane = uint32(thread & uint32(31))
        row = uint64(cuda.blockIdx.x) * uint64(THREADS // WARP) + uint64(thread >> uint32(5))
        if row < n_rows:
            top = _NEVER
            for part in range(n_parts):
                top = max(top, _ptx.load_f32(lses + (uint64(part) * n_rows + row) * uint64(4)))
            has_any = top > _NEVER
            shift = top if has_any else _ZERO
            total = _ZERO
            for part in range(n_parts):
                found = _ptx.load_f32(lses + (uint64(part) * n_rows + row) * uint64(4))
                total = total + _ptx.power_of_two((found - shift) * _LOG2_E)
            inverse = _ZERO
            if has_any:
                inverse = _ptx.divide(_ONE, total)
            j = lane
            while j < uint32(head_dim):
                value = _ZERO
                for part in range(n_parts):
                    place = uint64(part) * n_rows + row
                    weight = _ptx.power_of_two((_ptx.load_f32(lses + place * uint64(4)) - shift) * _LOG2_E)
                    address = outputs + (place * head_dim + uint64(j)) * uint64(part_bytes)
                    if part_type == FLOAT32:
                        stored = _ptx.load_f32(address)
                    elif part_type == FLOAT16:
                        stored = _ptx.low_half(_ptx.load_u16(address))
                    else:
                        stored = _ptx.float_from_bits(uint32(_ptx.load_u16(address) << uint32(16)))
                    value = value + weight * stored
                value = value * inverse
                target = out + (row * head_dim + uint64(j)) * uint64(out_bytes)
                if out_type == FLOAT32:
                    _ptx.store_f32(target, value)
                elif out_type == BFLOAT16:
                    _ptx.store_u16(target, _ptx.pack_bfloats(value, _ZERO))
                else:
                    _ptx.store_u16(target, _ptx.pack_halves(value, _ZERO))
                j = uint32(j + uint32(WARP))
            if lane == uint32(0):
                found = _NEVER
                if has_any:
                    found = top + _ptx.logarithm_of_two(total) * _LN2
                _ptx.store_f32(lse + row * uint64(4), found)

    return merge
