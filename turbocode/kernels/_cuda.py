"""The only place that touches Numba's CUDA side: decorators, compilation, addresses; and the simulator's twins.

In the simulator (NUMBA_ENABLE_CUDASIM=1) the same kernels run as Python.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from turbocode.errors import DeviceError

if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # numba-cuda 0.30 asks for it; NumPy 2.5 dropped it
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")

from numba import config

IS_SIMULATED = bool(config.ENABLE_CUDASIM)


class Address:
    """Where a simulated kernel reads and writes: bytes of an array from an offset on."""

    __slots__ = ("memory", "offset")

    def __init__(self, memory: Any, offset: int = 0) -> None:
        self.memory, self.offset = memory, offset

    @classmethod
    def of(cls, array: Any, index: Any = 0) -> Address:
        """The address of element `index` of a C-contiguous array."""
        return cls(array.reshape(-1).view(np.uint8), int(index) * array.itemsize)

    def __add__(self, n_bytes: Any) -> Address:
        return Address(self.memory, self.offset + int(n_bytes))

    __radd__ = __add__

    def __sub__(self, n_bytes: Any) -> Address:
        return Address(self.memory, self.offset - int(n_bytes))

    def __and__(self, mask: Any) -> int:
        return (int(self.memory.ctypes.data) + self.offset) & int(mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.memory is other.memory and self.offset == other.offset

    __hash__ = None  # type: ignore[assignment]

    def _part(self, dtype: Any, count: int) -> Any:
        size = np.dtype(dtype).itemsize * count
        if self.offset < 0 or self.offset + size > len(self.memory):
            raise IndexError(f"bytes {self.offset} to {self.offset + size} of an array of {len(self.memory)}")
        if (self.memory.ctypes.data + self.offset) % size:
            raise IndexError(f"address is no multiple of the {size} bytes read or written at once")
        return self.memory[self.offset : self.offset + size].view(dtype)

    def read(self, dtype: Any, count: int) -> Any:
        """`count` values of `dtype`."""
        return self._part(dtype, count)

    def write(self, dtype: Any, values: Any) -> None:
        """Store `values` as `dtype`."""
        self._part(dtype, len(values))[:] = values


if IS_SIMULATED:
    from turbocode.kernels import _simulated_copies, _simulator

    cuda: Any = _simulator.cuda
    types: Any = _simulator.types
    collective: Any = _simulator.collective
    define_collective: Any = _simulator.define_collective
    copies: Any = _simulated_copies

    def kernel(**options: Any) -> Any:
        """Decorator of kernels; compiler options mean nothing here."""
        return _simulator.Kernel

    def device(function: Any) -> Any:
        """Decorator of functions that kernels call."""
        return function

    def shared_address(array: Any, index: Any) -> Address:
        """The address of a shared array's element."""
        return Address.of(array, index)

    def at(address: Any, offset: Any) -> Address:
        """The shared address `offset` bytes on."""
        return address + offset

else:
    import numba.core.types
    import numba.cuda
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    cuda = numba.cuda
    types = numba.core.types
    collective = copies = None  # of the simulator, as the next

    def define_collective(name: str, meaning: Any) -> None:
        """Nothing to do without the simulator."""

    def kernel(**options: Any) -> Any:
        """Decorator of kernels, whose arguments are all uint64: addresses and counts."""

        def decorate(function: Any) -> Any:
            return cuda.jit(**options)(function)

        return decorate

    device = cuda.jit(device=True)

    @intrinsic
    def shared_address(typingctx: Any, array: Any, index: Any) -> Any:
        """The uint32 address, in shared memory, of element `index` of a shared array."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            from numba.cuda.np.arrayobj import make_array

            data = make_array(signature.args[0])(context, builder, args[0]).data
            position = context.cast(builder, args[1], signature.args[1], types.intp)
            pointer = builder.gep(data, [position])
            shared = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(addrspace=3))
            return builder.ptrtoint(shared, ir.IntType(32))

        return types.uint32(array, index), generate

    @device
    def at(address: Any, offset: Any) -> Any:
        """The shared address `offset` bytes on."""
        return types.uint32(types.uint32(address) + types.uint32(offset))


def multiprocessors() -> int:
    """Streaming multiprocessors of the current device."""
    return 1 if IS_SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


@functools.cache
def signature(n_args: int) -> Any:
    """The types of a kernel's arguments."""
    return (types.uint64,) * n_args


_modules: list[Any] = []  # stay loaded


def _load_cubin(name: str, cubin: bytes) -> Any:
    """The driver's handle of a function of the machine code, loaded into the current context."""
    from cuda.bindings import driver

    status, module = driver.cuModuleLoadData(cubin)
    if status:
        raise DeviceError(f"the CUDA driver refused a compiled kernel: {status.name}", hint="see nvidia-smi")
    _modules.append(module)
    status, function = driver.cuModuleGetFunction(module, name.encode())
    if status:
        raise DeviceError(f"the CUDA driver did not find a compiled kernel: {status.name}", hint="see nvidia-smi")
    return function


def load_kernel(dispatcher: Any, n_args: int, device_number: int, shared_bytes: int = 0) -> Any:
    """The driver's handle of a decorated function, compiled for the device and loaded there.

    shared_bytes : of dynamic shared memory that launches will ask for; beyond 48 KiB the driver wants to be told
    """
    from cuda.bindings import driver

    from turbocode.kernels import _kernel_cache

    with cuda.gpus[device_number]:
        capability = tuple(cuda.get_current_device().compute_capability)
        key = _kernel_cache.key_of(dispatcher, n_args, capability)
        found = _kernel_cache.find(key) if key else None
        if found is None:
            code = dispatcher.compile(signature(n_args))._codelibrary
            found = code._entry_name, bytes(code.get_cubin().code)
            if key:
                _kernel_cache.keep(key, *found)
        function = _load_cubin(*found)
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if shared_bytes:
            driver.cuFuncSetAttribute(function, attribute, shared_bytes)
        return function


@functools.cache
def n_devices() -> int:
    """GPUs that are visible."""
    return len(cuda.gpus)


def make_current(device_number: int) -> None:
    """Make launches of this thread go to the device; its primary context, as torch and CuPy use."""
    cuda.select_device(device_number)


def resident_blocks(function: Any, threads: int, device_number: int, shared_bytes: int = 0) -> int:
    """Blocks of a loaded kernel that the device runs at once."""
    from cuda.bindings import driver

    with cuda.gpus[device_number]:
        _, per_multiprocessor = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, threads, shared_bytes)
        return max(1, int(per_multiprocessor)) * multiprocessors()


def compile_ahead(dispatcher: Any, n_args: int, compute_capability: tuple[int, int]) -> bool:
    """Put a kernel for GPUs of a compute capability into the cache, if it is not there; whether it can be."""
    from turbocode.kernels import _kernel_cache

    key = _kernel_cache.key_of(dispatcher, n_args, compute_capability)
    if key and not _kernel_cache.find(key):
        name, codes = compiled_codes(dispatcher, n_args, [compute_capability])
        _kernel_cache.keep(key, name, codes[0][0])
    return key is not None


def compiled_codes(
    dispatcher: Any, n_args: int, capabilities: Sequence[tuple[int, int]]
) -> tuple[str, list[tuple[bytes, str]]]:
    """(name, [(cubin, the compiler's report)]) of a decorated function, for GPUs that need not be there.

    Numba's own part of the work, most of it, is done once for all of them.
    """
    from types import SimpleNamespace

    import numba.cuda.dispatcher as dispatching
    from numba.cuda.cudadrv import devices, driver

    pretended = SimpleNamespace(compute_capability=capabilities[0], id=0, supports_bfloat16=True, supports_float16=True)
    asked = dispatching.get_current_device, devices.get_context
    options_of = driver._Linker._get_linker_options

    def talkative(linker: Any, ptx: Any) -> Any:
        plain = options_of(linker, ptx)
        names = ("max_register_count", "lineinfo", "arch", "link_time_optimization", "ptx")
        return type(plain)(**{name: getattr(plain, name) for name in names}, ptxas_options=["-v"])

    dispatching.get_current_device = lambda: pretended
    devices.get_context = lambda devnum=None: SimpleNamespace(device=pretended)
    driver._Linker._get_linker_options = talkative
    try:
        options = {**dispatcher.targetoptions}
        library = dispatching._Kernel(dispatcher.py_func, signature(n_args), **options)._codelibrary
        codes = []
        for capability in capabilities:
            full = (*capability, "a" if capability >= (9, 0) else "")
            cubin = library.get_cubin(cc=full)
            codes.append((bytes(cubin.code), str(library.get_linkerinfo(full))))
        return str(library._entry_name), codes
    finally:
        dispatching.get_current_device, devices.get_context = asked
        driver._Linker._get_linker_options = options_of


@functools.cache
def compute_capability(device_number: int) -> tuple[int, int]:
    """Of a GPU; of Hopper in the simulator."""
    if IS_SIMULATED:
        return 9, 0
    major, minor = cuda.gpus[device_number].compute_capability
    return int(major), int(minor)


def has_bulk_copies(device_number: int) -> bool:
    """Whether one lane can copy a whole run into shared memory (compute capability 9.0)."""
    return compute_capability(device_number) >= (9, 0)


def shared_limits(device_number: int) -> tuple[int, int]:
    """(bytes of shared memory that a block may ask for, that a multiprocessor has)."""
    if IS_SIMULATED:
        return 227 << 10, 228 << 10
    device = cuda.gpus[device_number]
    return (
        int(device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        int(device.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
    )
