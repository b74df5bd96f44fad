"""The number types that a guarded file may hold, recognised from their bit fields and read as raw bits.

Names used here: float16, float32, float64, bfloat16 (HDF5-native), opaque16 (what h5py makes of an ml_dtypes bfloat16),
and int8 to uint64.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps.hdf5 import h5py

# (sign bit, exponent position, exponent bits, mantissa position, mantissa bits), exponent bias: IEEE 754 and bfloat16.
_FLOATS = {
    ((15, 10, 5, 0, 10), 15): "float16",
    ((15, 7, 8, 0, 7), 127): "bfloat16",
    ((31, 23, 8, 0, 23), 127): "float32",
    ((63, 52, 11, 0, 52), 1023): "float64",
}
# Which stored types may stand for a logical dtype of a dump.
STORED_AS = {
    "float16": ("float16",),
    "bfloat16": ("uint16", "opaque16", "bfloat16"),
    "float32": ("float32",),
}
LOGICAL_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_EXPONENT_MASK = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}


@dataclass(frozen=True)
class ValueType:
    """A number type as stored: name (see module), size in bytes, big_endian."""

    name: str
    size: int
    big_endian: bool


def recognise(type_id: Any) -> ValueType | None:
    """The ValueType of an HDF5 type, None for any type that is not a plain number."""
    if type_id.committed():
        return None
    kind, size = type_id.get_class(), type_id.get_size()
    if kind == h5py.h5t.OPAQUE:
        return ValueType("opaque16", 2, False) if size == 2 else None
    if kind not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER) or size not in (1, 2, 4, 8):
        return None
    order = type_id.get_order()
    if type_id.get_precision() != 8 * size or type_id.get_offset() != 0:
        return None
    if order not in (h5py.h5t.ORDER_LE, h5py.h5t.ORDER_BE):
        return None
    if kind == h5py.h5t.INTEGER:
        sign = "int" if type_id.get_sign() == h5py.h5t.SGN_2 else "uint"
        return ValueType(f"{sign}{8 * size}", size, order == h5py.h5t.ORDER_BE)
    name = _FLOATS.get((tuple(type_id.get_fields()), type_id.get_ebias()))
    if name is None or type_id.get_norm() != h5py.h5t.NORM_IMPLIED:
        return None
    return ValueType(name, size, order == h5py.h5t.ORDER_BE)


def read_raw(dataset_id: Any, value_type: ValueType, start: tuple[int, ...], count: tuple[int, ...]) -> NDArray[Any]:
    """Unsigned integers of the stored width and the given shape: the stored bits, native byte order, unconverted.

    start, count : hyperslab, one entry a dimension. HDF5's own conversion is bypassed so that bits stay bits.
    """
    raw = np.empty(count, dtype=f"u{value_type.size}")
    space = dataset_id.get_space()
    space.select_hyperslab(start, count)
    dataset_id.read(h5py.h5s.create_simple(count), space, raw, dataset_id.get_type())
    if value_type.big_endian != (sys.byteorder == "big") and value_type.size > 1:
        raw.byteswap(inplace=True)
    return raw


def nonfinite_mask(bits: NDArray[Any], logical_dtype: str) -> NDArray[np.bool_]:
    """Boolean array of the shape of `bits`: True where the value is NaN or infinite."""
    mask = bits.dtype.type(_EXPONENT_MASK[logical_dtype])
    return (bits & mask) == mask


def from_bits(bits: NDArray[Any], logical_dtype: str) -> NDArray[Any]:
    """Values of the stored bits: float16 as float16, float32 and bfloat16 as float32."""
    if logical_dtype == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16 if logical_dtype == "float16" else np.float32)


def to_bits(values: NDArray[Any], logical_dtype: str) -> NDArray[Any]:
    """Stored bits, uint16 or uint32, of float values; rounds to nearest even where the logical dtype is narrower.

    values : floating array. Too large a value becomes infinity, which `nonfinite_mask` finds.
    """
    if logical_dtype == "bfloat16":
        wide = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        is_nan = (wide & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded = (wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(is_nan, np.uint16(0x7FC0), rounded.astype(np.uint16))
    with np.errstate(over="ignore"):
        if logical_dtype == "float16":
            return np.ascontiguousarray(values, dtype=np.float16).view(np.uint16)
        return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
