"""What the GPU's attention kernels have in common on the host: the arrays of a call, and what each must be."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import OptionError
from turbocode.formats import BlockFormat, MultirateFormat
from turbocode.kernels import _launch
from turbocode.kernels._launch import DeviceArray, device_array
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.gpu_call import check_blocks, check_vectors
from turbocode.kernels.multirate.gpu_table import any_schedule

LOG2_E = 1.0 / np.log(2.0)


@dataclass(frozen=True, eq=False)
class Side:
    """How one side of a cache is stored.

    centroids : float32 (1 or n_kv_heads, entries), as PackedSide has them; of a multirate side, each its gpu_table
    """

    block_format: BlockFormat  # or a MultirateFormat, which prefill does not know
    rotation: Rotation
    centroids: NDArray[np.float32]


def compiled_format(form: Any) -> Any:
    """The format that kernels are compiled for: of multirate ones the schedule is data."""
    return any_schedule(form) if isinstance(form, MultirateFormat) else form


def open_arrays(
    queries: Any, keys: Any, values: Any, last_token: Any, out: Any, lse: Any, pages: Any, gains: Any
) -> tuple[Any, Any, list[Any]]:
    """(out, lse, all eight as DeviceArray or None), out and lse made like the queries where none are given."""
    like = device_array(queries)
    out = _launch.empty(like, like.shape, like.dtype) if out is None else out
    lse = _launch.empty(like, like.shape[:-1], "float32") if lse is None else lse
    given = queries, keys, values, last_token, out, lse, pages, gains
    return out, lse, [None if array is None else device_array(array) for array in given]


def check_arrays(arrays: Sequence[Any], key_side: Side, value_side: Side, d: int) -> tuple[int, int, int]:
    """(n_seqs, n_heads, n_rows). Raises OptionError for arrays that do not fit each other."""
    queries, keys, values, last_token, out, lse, pages, gains = arrays
    for array, name in ((queries, "queries"), (out, "out")):
        check_vectors(array, d, name)
    key_bytes, value_bytes = (side.block_format.bytes_per_vector(d) for side in (key_side, value_side))
    check_blocks(keys, key_bytes, "key blocks")
    check_blocks(values, value_bytes, "value blocks")
    if len(queries.shape) != 4 or out.shape != queries.shape or lse.shape != queries.shape[:3]:
        raise OptionError(
            f"queries {queries.shape}, out {out.shape}, lse {lse.shape}: needed are "
            "(n_seqs, n_query_heads, n_rows, head_dim), the same, and that without head_dim"
        )
    n_seqs, n_heads, n_rows, _ = queries.shape
    if len(keys.shape) != 4 or keys.shape[:3] != values.shape[:3] or keys.shape[1] == 0 or n_heads % keys.shape[1]:
        raise OptionError(
            f"key blocks {keys.shape} and value blocks {values.shape} do not fit queries {queries.shape}: needed are "
            "(n_seqs or n_pages, n_kv_heads, n_tokens, bytes) of both"
        )
    if pages is None and keys.shape[0] != n_seqs:
        raise OptionError(f"blocks of {keys.shape[0]} sequences do not fit queries of {n_seqs}")
    for array, row_bytes, name in ((keys, key_bytes, "key"), (values, value_bytes, "value")):
        if array.shape[2] > 1 and array.strides[2] != row_bytes:
            raise OptionError(
                f"{name} blocks of a head have a stride of {array.strides[2]} bytes; allowed is {row_bytes}"
            )
    if last_token is not None:
        _check_ints(last_token, (n_seqs, n_rows), "last_token", queries.device)
    if pages is not None:
        _check_ints(pages, (n_seqs, pages.shape[-1] if pages.shape else 0), "pages", queries.device)
    if gains is not None and (gains.dtype != "float32" or gains.shape != (n_heads,)):
        raise OptionError(f"gains are {gains.dtype} {gains.shape}; allowed is float32 ({n_heads},)")
    if lse.dtype != "float32" or lse.strides != _launch.contiguous_strides(lse.shape, 4):
        raise OptionError(f"lse is {lse.dtype} with strides {lse.strides}; allowed is float32, contiguous")
    for array in arrays:
        if array is not None and array.device != queries.device:
            raise OptionError(f"arrays lie on GPU {queries.device} and on GPU {array.device}; one GPU is allowed")
    return n_seqs, n_heads, n_rows


def _check_ints(array: DeviceArray, shape: tuple[int, int], name: str, device: int) -> None:
    if array.dtype != "int32" or array.shape != shape or (shape[1] > 1 and array.strides[1] != 4):
        raise OptionError(f"{name} is {array.dtype} {array.shape}; allowed is int32 {shape}, its rows contiguous")
    if name == "last_token" and shape[0] > 1 and array.strides[0] != 4 * shape[1]:
        raise OptionError("last_token is not contiguous; copy it first")


def float_bits(value: float) -> int:
    """The bits of a float32, as kernels take them among their counts."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
