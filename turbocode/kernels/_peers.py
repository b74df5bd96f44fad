"""From the memory of several GPUs to that of one: copies between devices in the order of their streams.

Addresses of one process are unique over its devices, so the driver knows where each lies: it copies over the link
between the GPUs where they have one, and through host memory where they do not.
"""

from __future__ import annotations

from typing import Any

from turbocode.kernels._cuda import IS_SIMULATED, make_current
from turbocode.kernels._graph import checked
from turbocode.kernels._launch import ITEM_BYTES, DeviceArray, contiguous_strides, empty


def wait_for(device: int, stream: int, other_device: int, other_stream: int) -> None:
    """Let what comes next in `stream` wait for what is in `other_stream` now; the host waits for neither."""
    if IS_SIMULATED or (device, stream) == (other_device, other_stream):
        return
    from cuda.bindings import driver

    make_current(other_device)
    event = checked(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    checked(driver.cuEventRecord(event, other_stream))
    make_current(device)
    checked(driver.cuStreamWaitEvent(stream, event, 0))
    checked(driver.cuEventDestroy(event))  # the driver keeps it until it is over


def copy_to(source: DeviceArray, target: DeviceArray, stream: int) -> None:
    """Copy an array to a place of the same shape on another GPU, in the order of that GPU's stream.

    source : contiguous; target : contiguous behind its first axis
    """
    size = ITEM_BYTES[source.dtype]
    assert source.shape == target.shape and source.dtype == target.dtype
    assert source.strides == contiguous_strides(source.shape, size)
    assert target.strides[1:] == contiguous_strides(target.shape[1:], size)
    if 0 in source.shape:
        return
    rows, width, pitch = source.shape[0], source.strides[0], target.strides[0]
    if IS_SIMULATED:
        for row in range(rows):
            begin, end = source.pointer.offset + row * width, target.pointer.offset + row * pitch
            target.pointer.memory[end : end + width] = source.pointer.memory[begin : begin + width]
        return
    from cuda.bindings import driver

    make_current(target.device)
    work = driver.CUDA_MEMCPY2D()
    work.srcMemoryType = work.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED
    work.srcDevice, work.srcPitch = source.pointer, width
    work.dstDevice, work.dstPitch = target.pointer, pitch
    work.WidthInBytes, work.Height = width, rows
    checked(driver.cuMemcpy2DAsync(work, stream))


def room(like: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array on the GPU of `like`, of its library; that GPU is the current one afterwards."""
    if not IS_SIMULATED:
        make_current(like.device)  # numba-cuda makes arrays on the current one
    return empty(like, shape, dtype)
