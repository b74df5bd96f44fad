"""What the GPU functions of all operations do on a call: look at the arrays, find the kernel, start it.

What a call needs beyond the pointers depends on shapes, strides and types alone; it is worked out once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turbocode.errors import OptionError
from turbocode.kernels import _launch
from turbocode.kernels._launch import DeviceArray
from turbocode.kernels.fwht.lanes import BFLOAT16, FLOAT16, FLOAT32
from turbocode.kernels.vectors import Geometry

VALUE_TYPES = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32}
WORD = 16  # bytes of the widest load


@dataclass(frozen=True)
class Plan:
    """A kernel with its grid and the arguments that are not pointers."""

    kernel: Any
    grid: int
    threads: int
    counts: tuple[int, ...]
    is_persistent: bool = False


def view(array: DeviceArray, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """The beginning of an array's memory as a contiguous array of another shape and dtype."""
    strides = _launch.contiguous_strides(shape, _launch.ITEM_BYTES[dtype])
    return DeviceArray(array.pointer, shape, strides, dtype, array.device, array.stream, array.owner)


def make_plan(kernel: Any, per_block: int, threads: int, batch: Geometry, capacity: int = 0) -> Plan:
    """The plan of a kernel whose blocks handle per_block groups each; if negative, at a time, until all are done."""
    return Plan(kernel, -(-batch.n_groups // abs(per_block)), threads, (*batch.arguments(), capacity), per_block < 0)


def check_vectors(array: DeviceArray, n_values: int, name: str) -> None:
    """Raise OptionError unless these are vectors of n_values contiguous values of a type that kernels read."""
    if array.dtype not in VALUE_TYPES:
        raise OptionError(f"{name} are {array.dtype}; allowed are {', '.join(VALUE_TYPES)}")
    _check_rows(array, n_values, name, f"vectors of {n_values} values")


def check_blocks(array: DeviceArray, n_bytes: int, name: str) -> None:
    """Raise OptionError unless these are uint8 rows of n_bytes contiguous bytes."""
    if array.dtype != "uint8":
        raise OptionError(f"{name} are {array.dtype}; blocks are uint8")
    _check_rows(array, n_bytes, name, f"blocks of {n_bytes} bytes a vector")


def _check_rows(array: DeviceArray, n: int, name: str, wanted: str) -> None:
    if not array.shape or array.shape[-1] != n:
        raise OptionError(f"{name} have shape {array.shape}; allowed are {wanted}")
    size = _launch.ITEM_BYTES[array.dtype]
    if n > 1 and 0 not in array.shape and array.strides[-1] != size:
        raise OptionError(f"{name} have a stride of {array.strides[-1]} bytes along the last axis; allowed is {size}")


def check_alignment(array: DeviceArray, name: str) -> None:
    """Raise OptionError unless rows begin at multiples of 16 bytes, which is what a lane reads or writes at once."""
    is_aligned = all(s % WORD == 0 for s, n in zip(array.strides[:-1], array.shape[:-1], strict=True) if n > 1)
    if not (is_aligned and is_word_aligned(array)):
        raise OptionError(
            f"{name} do not begin at multiples of {WORD} bytes; their strides are {array.strides[:-1]} bytes",
            hint="copy them into an array of their own, for example with contiguous() or clone()",
        )


def is_word_aligned(array: DeviceArray) -> bool:
    """Whether the array begins at a multiple of 16 bytes."""
    return _launch.number_of(array.pointer) % WORD == 0


def start(plan: Plan, device: int, stream: int, pointers: tuple[Any, ...], starts: Any = 0) -> None:
    """Run the plan's kernel on `pointers`; nothing if there is no group."""
    if plan.grid:
        args = (*pointers, *plan.counts, starts)
        _launch.launch(plan.kernel, plan.grid, plan.threads, device, stream, args, plan.is_persistent)
