"""Encoding and decoding on a GPU, arrays in GPU memory in and out; the blocks are those of `cpu`, byte for byte.

Vectors are float16, bfloat16 or float32 (..., head_dim) with up to three leading axes, (n_seqs, n_kv_heads,
n_tokens), and any strides but along head_dim. A kernel is compiled on the first call for its format, types and kind
of strides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _launch
from turbocode.kernels._launch import DeviceArray, device_array, look, stream_for
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.lanes import is_power_of_two
from turbocode.kernels.gpu_call import (
    VALUE_TYPES,
    Plan,
    check_alignment,
    check_blocks,
    check_vectors,
    is_word_aligned,
    make_plan,
    start,
)
from turbocode.kernels.scalar import (
    by_cell,
    decode_lanes,
    decode_shared,
    decode_tensor,
    encode_ggml,
    encode_lanes,
    encode_shared,
    encode_tensor,
)
from turbocode.kernels.scalar.decode_lanes import DecodeVariant
from turbocode.kernels.scalar.encode_lanes import EncodeVariant
from turbocode.kernels.scalar.gpu_steps import CELLS_AT, CENTROIDS_AT, HALF_SCALE_AT, N_FACTS, TABLE_SIZE
from turbocode.kernels.scalar.half_scale import half_scale
from turbocode.kernels.scalar.norm_mode import NormMode
from turbocode.kernels.vectors import geometry

# From a variant to (kernel, groups a block handles, threads of a block).
KernelChoice = Callable[[EncodeVariant], tuple[Any, int, int]]


def encode_choice(variant: EncodeVariant) -> tuple[Any, int, int]:
    """The scalar encoder for a variant whose blocks are the CPU's."""
    if encode_ggml.can_encode(variant):
        return (*encode_ggml.encode_kernel(variant), encode_ggml.THREADS)
    if is_power_of_two(variant.block_format.group_size):
        return (*encode_lanes.encode_kernel(variant), encode_lanes.THREADS)
    return (*encode_shared.encode_kernel(variant), encode_shared.THREADS)


def fast_encode_choice(variant: EncodeVariant) -> tuple[Any, int, int]:
    """The fastest scalar encoder for a variant with a symmetric codebook."""
    if encode_tensor.can_encode(variant):
        return (*encode_tensor.encode_kernel(variant), encode_tensor.THREADS)
    return encode_choice(variant)


def fast_decode_choice(variant: DecodeVariant) -> tuple[Any, int, int]:
    """The fastest decoder for a variant with a symmetric codebook."""
    if decode_tensor.can_decode(variant):
        return (*decode_tensor.decode_kernel(variant), decode_tensor.THREADS)
    return decode_choice(variant)


def decode_choice(variant: DecodeVariant) -> tuple[Any, int, int]:
    """The decoder for a variant whose values are the CPU's."""
    if is_power_of_two(variant.block_format.group_size):
        return (*decode_lanes.decode_kernel(variant), decode_lanes.THREADS)
    return (*decode_shared.decode_kernel(variant), decode_shared.THREADS)


def scalar_table(centroids: NDArray[np.float32], boundaries: NDArray[np.float32]) -> NDArray[np.float32]:
    """A codebook as kernels read it: see gpu_steps.py."""
    table = np.zeros(TABLE_SIZE, np.float32)
    table[: len(boundaries)] = boundaries
    table[CENTROIDS_AT : CENTROIDS_AT + len(centroids)] = centroids
    return table


def fast_table(centroids: NDArray[np.float32], boundaries: NDArray[np.float32]) -> NDArray[np.float32]:
    """`scalar_table` with what the fast kernels read of a symmetric codebook besides."""
    table = scalar_table(centroids, boundaries)
    table[HALF_SCALE_AT] = half_scale(centroids)
    if len(centroids) == 1 << by_cell.BITS:
        kept = by_cell.cells(boundaries)
        assert kept is not None, "see encode_tensor.is_symmetric"
        table[CELLS_AT:] = kept.view(np.float32)
    return table


class Encoder:
    """Encodes vectors of one format, rotation and table.

    encoder(values) -> blocks uint8 (..., bytes_per_vector), a new array of the library that made `values`
    encoder(values, out=cache, starts=lengths) writes in place: out uint8 (n_seqs, n_kv_heads, capacity,
    bytes_per_vector), starts int32 (n_seqs,) in GPU memory: the token at which each sequence goes on. Tokens beyond the
    capacity are left out. Both can be captured in a CUDA graph after one call that compiles the kernel.
    encoder.measured(values) -> (blocks, facts float32 (n, 6), flags uint8 (n,)); see group.moments_of_facts
    """

    def __init__(
        self,
        block_format: BlockFormat,
        rotation: Rotation,
        table: NDArray[np.float32],
        mode: NormMode,
        choose: KernelChoice = encode_choice,
    ) -> None:
        self.block_format, self.rotation, self.mode = block_format, rotation, mode
        self._table, self._choose = np.ascontiguousarray(table, np.float32), choose
        self._plans: dict[Any, tuple[Plan, Any]] = {}

    def __call__(self, values: Any, *, out: Any = None, starts: Any = None, stream: Any = None) -> Any:
        return self._run(values, out, starts, stream, is_measured=False)[0]

    def measured(
        self, values: Any, *, out: Any = None, room: tuple[Any, Any] | None = None, stream: Any = None
    ) -> tuple[Any, Any, Any]:
        """(blocks, facts, flags) of the vectors; room : the arrays for facts and flags, new ones by default."""
        return self._run(values, out, None, stream, is_measured=True, room=room)

    def _run(
        self, values: Any, out: Any, starts: Any, stream: Any, *, is_measured: bool, room: Any = None
    ) -> tuple[Any, Any, Any]:
        if out is None:
            out = self._new_blocks(device_array(values), starts)
        source_key, source, device = look(values)
        target_key, target, _ = look(out)
        begin: Any = 0
        starts_key = None
        if starts is not None:
            starts_key, begin, _ = look(starts)
        key = source_key, target_key, starts_key, is_measured
        found = self._plans.get(key)
        if found is None:
            if starts is not None:
                _check_starts(device_array(starts), device_array(out))
            plan = self._plan(device_array(values), device_array(out), starts is not None, is_measured)
            found = self._plans[key] = plan, device_table(self._table, device)
        plan, table = found
        facts = flags = None
        pointers: tuple[Any, ...] = (source, target, table, 0, 0)
        if is_measured:
            facts, flags = room or self._room(device_array(values), plan)
            pointers = (source, target, table, device_array(facts).pointer, device_array(flags).pointer)
        start(plan, device, stream_for(stream, values, device), pointers, begin)
        return out, facts, flags

    def _new_blocks(self, source: DeviceArray, starts: Any) -> Any:
        if starts is not None:
            raise OptionError("`starts` says where in `out` to write, and `out` is not given")
        n_groups = (source.shape[-1] if source.shape else 0) // self.block_format.group_size
        return _launch.empty(source, (*source.shape[:-1], n_groups * self.block_format.bytes_per_group), "uint8")

    def _room(self, source: DeviceArray, plan: Plan) -> tuple[Any, Any]:
        n = plan.counts[0]
        return _launch.empty(source, (n, N_FACTS), "float32"), _launch.empty(source, (n,), "uint8")

    def _plan(self, source: DeviceArray, target: DeviceArray, has_starts: bool, is_measured: bool) -> Plan:
        form = self.block_format
        g, head_dim = form.group_size, source.shape[-1] if source.shape else 0
        if head_dim == 0 or head_dim % g:
            raise OptionError(
                f"{form.name} encodes vectors of multiples of {g} values; values have shape {source.shape}"
            )
        _check_device(source, target, "values", "blocks")
        check_vectors(source, head_dim, "values")
        check_blocks(target, head_dim // g * form.bytes_per_group, "blocks")
        if is_power_of_two(g):
            check_alignment(source, "values")
        shape, capacity = source.shape[:-1], 0
        if has_starts:
            if target.shape[:-2] != shape[:-1] or len(shape) != 3:
                raise OptionError(
                    f"with starts, values are (n_seqs, n_kv_heads, n_tokens, head_dim) and out has the same first two; "
                    f"given are {source.shape} and {target.shape}"
                )
            capacity = target.shape[-2]
        elif target.shape[:-1] != shape:
            raise OptionError(f"values of shape {source.shape} do not fill blocks of shape {target.shape}")
        size = _launch.ITEM_BYTES[source.dtype]
        batch = geometry(
            shape, source.strides[:-1], head_dim * size, target.strides[:-1], target.shape[-1], head_dim // g
        )
        writes_strided = has_starts or batch.writes_strided or not is_word_aligned(target)
        value_type = VALUE_TYPES[source.dtype]
        variant = EncodeVariant(
            form, self.rotation, self.mode, value_type, is_measured, batch.reads_strided, writes_strided
        )
        kernel, per_block, threads = self._choose(variant)
        return make_plan(kernel, per_block, threads, batch, capacity)


class Decoder:
    """Decodes blocks of one format, rotation and table, trellises too.

    decoder(blocks, dtype="float16") -> vectors (..., head_dim), a new array; or out= of a type and strides of one's own
    The rotation `none` leaves the values in the rotated basis.
    """

    def __init__(
        self,
        block_format: BlockFormat,
        rotation: Rotation,
        table: NDArray[np.float32],
        choose: Callable[[DecodeVariant], tuple[Any, int, int]] = decode_choice,
    ) -> None:
        self.block_format, self.rotation, self._choose = block_format, rotation, choose
        self._table = np.ascontiguousarray(table, np.float32)
        self._plans: dict[Any, tuple[Plan, Any]] = {}

    def __call__(self, blocks: Any, *, dtype: str = "float16", out: Any = None, stream: Any = None) -> Any:
        if out is None:
            out = self._new_vectors(device_array(blocks), dtype)
        source_key, source, device = look(blocks)
        target_key, target, _ = look(out)
        found = self._plans.get((source_key, target_key))
        if found is None:
            plan = self._plan(device_array(blocks), device_array(out))
            found = self._plans[source_key, target_key] = plan, device_table(self._table, device)
        plan, table = found
        start(plan, device, stream_for(stream, blocks, device), (source, target, table))
        return out

    def _new_vectors(self, source: DeviceArray, dtype: str) -> Any:
        if dtype not in VALUE_TYPES:
            raise OptionError(f"dtype {dtype!r} is not one of {', '.join(VALUE_TYPES)}")
        n_groups = (source.shape[-1] if source.shape else 0) // self.block_format.bytes_per_group
        return _launch.empty(source, (*source.shape[:-1], n_groups * self.block_format.group_size), dtype)

    def _plan(self, source: DeviceArray, target: DeviceArray) -> Plan:
        form = self.block_format
        n_bytes = source.shape[-1] if source.shape else 0
        if n_bytes == 0 or n_bytes % form.bytes_per_group:
            raise OptionError(
                f"{form.name} decodes rows of multiples of {form.bytes_per_group} bytes; "
                f"blocks have shape {source.shape}"
            )
        per_vector = n_bytes // form.bytes_per_group
        _check_device(source, target, "blocks", "values")
        check_blocks(source, n_bytes, "blocks")
        check_vectors(target, per_vector * form.group_size, "values")
        if target.shape[:-1] != source.shape[:-1]:
            raise OptionError(f"blocks of shape {source.shape} do not fill values of shape {target.shape}")
        if is_power_of_two(form.group_size):
            check_alignment(target, "values")
        size = _launch.ITEM_BYTES[target.dtype]
        batch = geometry(
            source.shape[:-1],
            source.strides[:-1],
            n_bytes,
            target.strides[:-1],
            target.shape[-1] * size,
            per_vector,
        )
        reads_strided = batch.reads_strided or not is_word_aligned(source)
        value_type = VALUE_TYPES[target.dtype]
        variant = DecodeVariant(form, self.rotation, value_type, reads_strided, batch.writes_strided)
        kernel, per_block, threads = self._choose(variant)
        return make_plan(kernel, per_block, threads, batch)


def _check_device(source: DeviceArray, target: DeviceArray, source_name: str, target_name: str) -> None:
    if source.device != target.device:
        raise OptionError(
            f"{source_name} are on GPU {source.device}, {target_name} on GPU {target.device}; one GPU is allowed"
        )


def _check_starts(starts: DeviceArray, target: DeviceArray) -> None:
    if starts.dtype != "int32" or starts.shape != target.shape[:1] or starts.device != target.device:
        raise OptionError(
            f"starts are {starts.dtype} of shape {starts.shape} on GPU {starts.device}; "
            f"allowed is int32 {target.shape[:1]} on GPU {target.device}"
        )
    if starts.shape[0] > 1 and starts.strides[0] != 4:
        raise OptionError("starts are not contiguous; copy them first")


# Tables stay on a device once they are there; a codec has one or one per head.
_tables: dict[tuple[int, int], Any] = {}


def device_table(table: NDArray[np.float32], device: int) -> Any:
    """The address of a copy of the table on the device."""
    key = table.ctypes.data, device
    found = _tables.get(key)
    if found is None:
        found = _tables[key] = (_launch.upload(table, device), table)
    return found[0].pointer
