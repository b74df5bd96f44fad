"""Decode attention by the plain kernel, and the merging of pieces: arrays in GPU memory in and out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from turbocode.errors import OptionError
from turbocode.kernels import _launch
from turbocode.kernels._cuda import multiprocessors
from turbocode.kernels._launch import DeviceArray, device_array, stream_handle
from turbocode.kernels.attention.gpu_arrays import (
    LOG2_E,
    Side,
    check_arrays,
    compiled_format,
    float_bits,
    open_arrays,
)
from turbocode.kernels.attention.merge_kernel import THREADS as MERGE_THREADS
from turbocode.kernels.attention.merge_kernel import merge_kernel
from turbocode.kernels.attention.plain_kernel import N_ARGS, WARP, WARPS, PlainVariant, plain_kernel
from turbocode.kernels.attention.skipping import EVERYTHING
from turbocode.kernels.gpu_call import VALUE_TYPES, view

MIN_SPLIT_TOKENS = 64
BLOCKS_PER_MULTIPROCESSOR = 4


class PlainAttention:
    """Attends as cuda.DecodeAttention does, with the same arguments, over any pair of formats."""

    def __init__(self, keys: Side, values: Side, head_dim: int) -> None:
        self.keys, self.values, self.head_dim = keys, values, head_dim
        self._tables = [np.ascontiguousarray(side.centroids, np.float32) for side in (keys, values)]
        self.skipping = EVERYTHING
        self._on_device: dict[int, list[DeviceArray]] = {}
        self._rooms: dict[tuple[int, int], tuple[DeviceArray, DeviceArray, Any]] = {}

    def __call__(
        self,
        queries: Any,
        keys: Any,
        values: Any,
        last_token: Any,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        first_token: int = 0,
        pages: Any = None,
        gains: Any = None,
        n_blocks: int | None = None,
        out: Any = None,
        lse: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        out, lse, arrays = open_arrays(queries, keys, values, last_token, out, lse, pages, gains)
        n_seqs, n_heads, n_rows = check_arrays(arrays, self.keys, self.values, self.head_dim)
        q, k, v, last, _, _, page_table, gain_table = arrays
        if 0 in (n_seqs, n_heads, n_rows):
            return out, lse
        device, handle = q.device, stream_handle(stream, q.stream)
        is_paged = page_table is not None
        page_tokens = k.shape[2] if is_paged else 1
        if is_paged and page_tokens & (page_tokens - 1):
            raise OptionError(f"pages of {page_tokens} tokens; allowed are powers of two")
        n_tokens = page_table.shape[1] * page_tokens if is_paged else k.shape[2]
        n_row_blocks = n_seqs * n_heads * n_rows
        wanted = n_blocks or -(-BLOCKS_PER_MULTIPROCESSOR * multiprocessors() // n_row_blocks)
        n_splits = max(1, min(wanted, -(-n_tokens // MIN_SPLIT_TOKENS)))
        parts, part_lses = self._room(device, handle, (n_splits, *q.shape))
        variant = PlainVariant(
            compiled_format(self.keys.block_format),
            compiled_format(self.values.block_format),
            self.keys.rotation,
            self.values.rotation,
            self.head_dim,
            VALUE_TYPES[q.dtype],
            is_paged,
            softcap > 0,
        )
        tables = self._on_device.get(device)
        if tables is None:
            tables = self._on_device[device] = [_launch.upload(table, device) for table in self._tables]
        factor = scale / softcap if softcap else scale * LOG2_E
        args = (
            *(q.pointer, parts.pointer, part_lses.pointer, k.pointer, v.pointer),
            *(tables[0].pointer, tables[1].pointer, last.pointer),
            *(page_table.pointer if is_paged else 0, 0 if gain_table is None else gain_table.pointer),
            *(n_seqs, k.shape[1], n_heads // k.shape[1], n_rows, n_tokens, first_token, window),
            *q.strides[:3],
            *(*k.strides[:3], *v.strides[:3]),
            *(page_table.strides[0] // 4 if is_paged else 0, page_tokens.bit_length() - 1),
            *(4 * table.shape[1] if len(table) > 1 else 0 for table in self._tables),
            *(float_bits(factor), float_bits(softcap * LOG2_E), n_splits, int(gain_table is not None)),
            *(float_bits(self.skipping.sparse_v), float_bits(self.skipping.tile_floor * LOG2_E)),
        )
        assert len(args) == N_ARGS
        _launch.launch(plain_kernel(variant), n_row_blocks * n_splits, WARP * WARPS, device, handle, args)
        merge(parts, part_lses, out=out, lse=lse, stream=handle)
        return out, lse

    def _room(self, device: int, stream: int, shape: tuple[int, ...]) -> tuple[DeviceArray, DeviceArray]:
        """Memory for partial outputs of that shape and their log-sum-exps, which the calls in a stream share."""
        n_rows = math.prod(shape[:-1])
        found = self._rooms.get((device, stream))
        if found is None or math.prod(found[1].shape) < n_rows:
            outputs = _launch.upload(np.zeros(n_rows * shape[-1], np.float32), device)
            lses = _launch.upload(np.zeros(n_rows, np.float32), device)
            found = self._rooms[device, stream] = outputs, lses, found  # runs still may use the smaller ones
        return view(found[0], shape, "float32"), view(found[1], shape[:-1], "float32")


def merge(outputs: Any, lses: Any, *, out: Any = None, lse: Any = None, stream: Any = None) -> tuple[Any, Any]:
    """(output, lse) over a whole cache from those of its pieces, stacked on the first axis.

    outputs : float16, bfloat16 or float32 (n_parts, ..., head_dim), contiguous; lses : float32 (n_parts, ...)
    Pieces that a row sees nothing of have -inf; so does the result where all have, and output 0.
    """
    parts, part_lses = device_array(outputs), device_array(lses)
    if parts.dtype not in VALUE_TYPES or part_lses.dtype != "float32" or part_lses.shape != parts.shape[:-1]:
        raise OptionError(
            f"outputs {parts.dtype} {parts.shape} and log-sum-exps {part_lses.dtype} {part_lses.shape} do not fit: "
            "(n_parts, ..., head_dim) and float32 (n_parts, ...) are needed"
        )
    if out is None:
        out = _launch.empty(parts, parts.shape[1:], parts.dtype)
    if lse is None:
        lse = _launch.empty(parts, parts.shape[1:-1], "float32")
    target, target_lse = device_array(out), device_array(lse)
    for array in (parts, part_lses, target, target_lse):
        if array.strides != _launch.contiguous_strides(array.shape, _launch.ITEM_BYTES[array.dtype]):
            raise OptionError(f"an array of shape {array.shape} is not contiguous; copy it first")
    if target.shape != parts.shape[1:] or target_lse.shape != part_lses.shape[1:] or target.dtype not in VALUE_TYPES:
        raise OptionError(f"out {target.dtype} {target.shape}, lse {target_lse.shape} do not fit {parts.shape}")
    n_rows = 1
    for n in parts.shape[1:-1]:
        n_rows *= n
    if n_rows and parts.shape[0]:
        args = (
            *(parts.pointer, part_lses.pointer, target.pointer, target_lse.pointer),
            *(parts.shape[0], n_rows, parts.shape[-1]),
        )
        kernel = merge_kernel(VALUE_TYPES[parts.dtype], VALUE_TYPES[target.dtype])
        grid = -(-n_rows // (MERGE_THREADS // WARP))
        _launch.launch(kernel, grid, MERGE_THREADS, parts.device, stream_handle(stream, parts.stream), args)
    return out, lse
