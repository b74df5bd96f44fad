"""From a Python call to a running kernel in microseconds: arrays as pointers, kernels compiled once, no hidden copies.

Arrays may be those of torch, CuPy or numba-cuda, or anything with `__cuda_array_interface__` (version 3) or DLPack. The
stream is the caller's: the current one of torch or CuPy for their arrays, the default stream else, or what is given.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from turbocode.errors import DeviceError, OptionError
from turbocode.kernels._cuda import IS_SIMULATED, Address, load_kernel, make_current, n_devices, resident_blocks

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1, "uint16": 2, "int32": 4, "uint32": 4}
_TYPESTR = {"<f2": "float16", "<f4": "float32", "|u1": "uint8", "<u2": "uint16", "<i4": "int32", "<u4": "uint32"}
_DLPACK_CUDA = 2


@dataclass(slots=True)
class DeviceArray:
    """pointer : an address on the GPU (an Address in the simulator); strides : in bytes; stream : the current one

    dtype : a key of ITEM_BYTES
    """

    pointer: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    stream: int
    owner: Any

    def part(self, axis: int, start: int, stop: int | None = None) -> DeviceArray:
        """The entries start to stop of an axis; without a stop entry `start` alone, the axis left out."""
        kept = () if stop is None else (stop - start,)
        shape = (*self.shape[:axis], *kept, *self.shape[axis + 1 :])
        strides = (*self.strides[:axis], *self.strides[axis : axis + len(kept)], *self.strides[axis + 1 :])
        pointer = self.pointer + start * self.strides[axis]
        return DeviceArray(pointer, shape, strides, self.dtype, self.device, self.stream, self.owner)


def device_array(array: Any) -> DeviceArray:
    """The array as pointer, shape and strides. Raises OptionError for host arrays and for dtypes not known here."""
    if isinstance(array, DeviceArray):
        return array
    library = type(array).__module__.partition(".")[0]
    if library == "torch":
        return _simulated_torch(array) if IS_SIMULATED else _from_torch(array)
    if IS_SIMULATED and isinstance(array, np.ndarray):
        return simulated(array)
    if hasattr(array, "__cuda_array_interface__"):
        return from_interface(array)
    if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == _DLPACK_CUDA:
        return _from_dlpack(array)
    raise OptionError(
        f"{type(array).__module__}.{type(array).__qualname__} is not in GPU memory; functions of the GPU take arrays "
        "that are, and copy nothing",
        hint="copy it first, for example with torch.as_tensor(array, device='cuda'), or use device='cpu'",
    )


@functools.cache
def _torch_dtypes() -> dict[Any, tuple[str, int]]:
    torch = sys.modules["torch"]
    return {getattr(torch, name): (name, size) for name, size in ITEM_BYTES.items() if hasattr(torch, name)}


@functools.cache
def _raw_stream() -> Callable[[int], int]:
    """From a device number to torch's current stream there; the short way where this torch has it."""
    torch = sys.modules["torch"]
    short = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return short or (lambda index: int(torch.cuda.current_stream(index).cuda_stream))


def _from_torch(tensor: Any) -> DeviceArray:
    found = _torch_dtypes().get(tensor.dtype)
    if not tensor.is_cuda:
        raise OptionError(
            f"the tensor is on {tensor.device}; functions of the GPU take tensors on cuda, and copy nothing",
            hint="copy it first with tensor.cuda(), or use device='cpu'",
        )
    if found is None:
        raise _wrong_dtype(tensor.dtype)
    name, size = found
    index = tensor.get_device()
    strides = tuple([size * s for s in tensor.stride()])
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), strides, name, index, _raw_stream()(index), tensor)


def _simulated_torch(tensor: Any) -> DeviceArray:
    """In the simulator torch's tensors in host memory stand for those on the GPU."""
    torch, storage = sys.modules["torch"], tensor.untyped_storage()
    memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    name, size = _torch_dtypes()[tensor.dtype]
    address = Address(memory, tensor.data_ptr() - storage.data_ptr())
    strides = tuple(size * s for s in tensor.stride())
    return DeviceArray(address, tuple(tensor.shape), strides, name, 0, 0, tensor)


def look(array: Any) -> tuple[Any, Any, int]:
    """(what decides on kernel and counts, pointer, device) of an array; quicker than `device_array`."""
    if type(array).__module__ == "torch" and (device := array.get_device()) >= 0:
        pointer = array.data_ptr()
        return (array.dtype, array.shape, array.stride(), pointer & 15, device), pointer, device
    found = device_array(array)
    key = found.dtype, found.shape, found.strides, number_of(found.pointer) & 15, found.device
    return key, found.pointer, found.device


def number_of(pointer: Any) -> int:
    """An address as a number, a simulated one too."""
    return pointer if isinstance(pointer, int) else pointer.memory.ctypes.data + pointer.offset


def _wrong_dtype(dtype: Any) -> OptionError:
    return OptionError(f"an array of {dtype} on the GPU; allowed are {', '.join(ITEM_BYTES)}")


def contiguous_strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array of items of `size` bytes."""
    strides = []
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return tuple(reversed(strides))


def from_interface(array: Any, dtype: str | None = None) -> DeviceArray:
    """An array with `__cuda_array_interface__`; dtype : what its elements are, if that is not what it says."""
    interface = array.__cuda_array_interface__
    library = type(array).__module__.partition(".")[0]
    given = str(getattr(array, "dtype", interface["typestr"]))
    name = dtype or (given if given in ITEM_BYTES else _TYPESTR.get(interface["typestr"]))
    if name is None:
        raise _wrong_dtype(given)
    shape = tuple(interface["shape"])
    strides = interface.get("strides") or contiguous_strides(shape, ITEM_BYTES[name])
    if library == "cupy":
        device, stream = array.device.id, sys.modules["cupy"].cuda.get_current_stream().ptr
    else:
        device, stream = _current_device(), interface.get("stream") or 0
    return DeviceArray(interface["data"][0], shape, tuple(strides), name, device, stream, array)


def _from_dlpack(array: Any) -> DeviceArray:
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(array, stream_ptr=-1)
    name = str(view.dtype)
    if name not in ITEM_BYTES:
        raise _wrong_dtype(name)
    strides = contiguous_strides(view.shape, ITEM_BYTES[name])
    if view.strides:
        strides = tuple(ITEM_BYTES[name] * s for s in view.strides)
    return DeviceArray(view.ptr, tuple(view.shape), strides, name, view.device_id, 0, (array, view))


def simulated(array: np.ndarray[Any, Any]) -> DeviceArray:
    """In the simulator NumPy arrays stand for arrays on the GPU; bfloat16 is passed as int16."""
    name = "bfloat16" if array.dtype == np.int16 else str(array.dtype)
    base = array if array.base is None else array.base
    while isinstance(base.base, np.ndarray):
        base = base.base
    memory = base.reshape(-1).view(np.uint8)
    offset = array.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    return DeviceArray(Address(memory, offset), array.shape, array.strides, name, 0, 0, array)


def _current_device() -> int:
    from turbocode.kernels._cuda import cuda

    return int(cuda.get_current_device().id)


def stream_handle(stream: Any, default: int) -> int:
    """The number of a stream: None (default), a number, or a stream of torch, CuPy, numba-cuda or cuda.core."""
    if stream is None:
        return default
    if isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(getattr(handle, "value", handle) or 0)
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    raise OptionError(f"{type(stream).__qualname__} is no CUDA stream; allowed: None, its number, a stream object")


def stream_for(stream: Any, array: Any, device: int) -> int:
    """`stream_handle`; for None the stream on which the library of an array on a GPU works now."""
    if stream is not None:
        return stream_handle(stream, 0)
    if type(array).__module__ == "torch" and not IS_SIMULATED:
        return _raw_stream()(device)
    return device_array(array).stream


def empty(like: DeviceArray, shape: tuple[int, ...], dtype: str) -> Any:
    """A new array on the same GPU and of the same library; of numba-cuda where that has no way to make one."""
    library = type(like.owner).__module__.partition(".")[0]
    if library == "torch":
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.owner.device)
    if IS_SIMULATED:
        return np.empty(shape, np.int16 if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        raise OptionError("an array of bfloat16 can only be made for torch; give `out`")
    if library == "cupy":
        return sys.modules["cupy"].empty(shape, dtype)
    from turbocode.kernels._cuda import cuda

    return cuda.device_array(shape, dtype)


# Kernels by function and device: loaded on the first call, and kept.
_loaded: dict[tuple[Any, int], Any] = {}
_thread = threading.local()


@functools.cache
def _driver() -> Any:
    from cuda.bindings import driver

    return driver


@functools.cache
def _stream(handle: int) -> Any:
    return _driver().CUstream(handle)


def _parameters(args: tuple[int, ...]) -> int:
    """The address of an array of addresses of the arguments, which stays valid until the thread's next launch."""
    n = len(args)
    if not hasattr(_thread, "buffers"):
        _thread.buffers = {}
    buffers = _thread.buffers.get(n)
    if buffers is None:
        values = (ctypes.c_uint64 * n)()
        base = ctypes.addressof(values)
        addresses = (ctypes.c_void_p * n)(*(base + 8 * i for i in range(n)))
        buffers = _thread.buffers[n] = values, addresses, ctypes.addressof(addresses)
    buffers[0][:] = args
    return int(buffers[2])


def _load(kernel: Any, n_args: int, threads: int, device: int, shared_bytes: int) -> tuple[Any, int]:
    found = _loaded.get((kernel, device))
    if found is None:
        function = load_kernel(kernel, n_args, device, shared_bytes)
        found = _loaded[kernel, device] = function, resident_blocks(function, threads, device, shared_bytes)
    return found


def resident(kernel: Any, n_args: int, threads: int, device: int, shared_bytes: int = 0) -> int:
    """Blocks of a kernel that the device runs at once; the kernel is compiled if it is new there."""
    return 1 if IS_SIMULATED else _load(kernel, n_args, threads, device, shared_bytes)[1]


def launch(
    kernel: Any,
    grid: int,
    threads: int,
    device: int,
    stream: int,
    args: tuple[Any, ...],
    is_persistent: bool = False,
    shared_bytes: int = 0,
) -> None:
    """Start a kernel, whose arguments are addresses and counts, compiling it for the device if it is new there.

    is_persistent : blocks go through all work together, so that no more are started than run at once
    shared_bytes : dynamic shared memory of a block, the same on every launch of the kernel
    """
    if IS_SIMULATED:
        kernel.launch(1 if is_persistent else grid, threads, *args, shared_bytes=shared_bytes)
        return
    function, at_once = _load(kernel, len(args), threads, device, shared_bytes)
    if is_persistent and grid > at_once:
        grid = at_once
    if n_devices() > 1 or not hasattr(_thread, "has_context"):
        make_current(device)
        _thread.has_context = True
    parameters = _parameters(args)
    status = _driver().cuLaunchKernel(
        function, grid, 1, 1, threads, 1, 1, shared_bytes, _stream(stream), parameters, 0
    )[0]
    if status:
        raise DeviceError(f"the CUDA driver refused to start a kernel: {status.name}", hint="see nvidia-smi")


def upload(array: np.ndarray[Any, Any], device: int) -> DeviceArray:
    """A copy of a small host array in the memory of a device, there to stay."""
    if IS_SIMULATED:
        return simulated(array)
    from turbocode.kernels._cuda import cuda

    with cuda.gpus[device]:
        copy = cuda.to_device(array)
    return from_interface(copy)
