"""The rotation on a GPU, arrays in GPU memory in and out: the same float32 arithmetic, in the same order, as `cpu`."""

from __future__ import annotations

import functools
from typing import Any

from turbocode.errors import OptionError
from turbocode.kernels import _launch
from turbocode.kernels._launch import DeviceArray, device_array, stream_handle
from turbocode.kernels.fwht.hadamard import Rotation
from turbocode.kernels.fwht.lanes import is_power_of_two
from turbocode.kernels.fwht.rotate_kernel import THREADS, rotate_kernel, rotate_shared_kernel
from turbocode.kernels.gpu_call import VALUE_TYPES, Plan, check_alignment, check_vectors, start
from turbocode.kernels.vectors import geometry


def rotate(x: Any, rotation: Rotation, *, out: Any = None, stream: Any = None) -> Any:
    """D2 H D1 x for every group of vectors (..., n), n a multiple of the group size; as out, or new of the same type.

    x, out : float16, bfloat16 or float32 with up to three leading axes; out may be x
    """
    return _apply(x, rotation, False, out, stream)


def unrotate(y: Any, rotation: Rotation, *, out: Any = None, stream: Any = None) -> Any:
    """D1 H^T D2 y: the inverse of `rotate`."""
    return _apply(y, rotation, True, out, stream)


def _apply(x: Any, rotation: Rotation, is_inverse: bool, out: Any, stream: Any) -> Any:
    source = device_array(x)
    if out is None:
        out = _launch.empty(source, source.shape, source.dtype)
    target = device_array(out)
    if source.device != target.device:
        raise OptionError(f"x is on GPU {source.device}, out on GPU {target.device}; one is allowed")
    plan = _plan(
        rotation, is_inverse, source.shape, source.strides, source.dtype, target.shape, target.strides, target.dtype
    )
    if is_power_of_two(rotation.group_size):
        check_alignment(source, "x")
        check_alignment(target, "out")
    start(plan, source.device, stream_handle(stream, source.stream), (source.pointer, target.pointer))
    return out


@functools.cache
def _plan(
    rotation: Rotation,
    is_inverse: bool,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: str,
    out_shape: tuple[int, ...],
    out_strides: tuple[int, ...],
    out_dtype: str,
) -> Plan:
    g = rotation.group_size
    n = shape[-1] if shape else 0
    if n == 0 or n % g or out_shape != shape:
        raise OptionError(
            f"x has shape {shape}, out {out_shape}; allowed are equal shapes, the last axis a multiple of {g}"
        )
    check_vectors(DeviceArray(0, shape, strides, dtype, 0, 0, None), n, "x")
    check_vectors(DeviceArray(0, out_shape, out_strides, out_dtype, 0, 0, None), n, "out")
    sizes = [_launch.ITEM_BYTES[name] for name in (dtype, out_dtype)]
    batch = geometry(shape[:-1], strides[:-1], n * sizes[0], out_strides[:-1], n * sizes[1], n // g)
    in_registers = is_power_of_two(g) and not rotation.is_identity
    choose = rotate_kernel if in_registers else rotate_shared_kernel
    kernel, per_block = choose(
        rotation, is_inverse, VALUE_TYPES[dtype], VALUE_TYPES[out_dtype], batch.reads_strided, batch.writes_strided
    )
    return Plan(kernel, -(-batch.n_groups // per_block), THREADS, (*batch.arguments(), 0))
