"""Arrays in GPU memory for benchmarks: torch's where torch sees the GPU, so that torch can attend over them too.

Without torch they are numba-cuda's, and Gaussian values repeat a piece made on the host.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

SEED_VALUES = 1 << 22


def torch_problem() -> str | None:
    """None if torch can use the GPU, else one phrase that says why not."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "torch sees no GPU"


class GpuMemory:
    """New arrays on a device. gpu : a kernels._graph.Gpu; torch : the module, or None where it is of no use"""

    def __init__(self, gpu: Any, seed: int) -> None:
        self.gpu, self.seed = gpu, seed
        self.torch: Any = None
        if torch_problem() is None:
            import torch

            self.torch, self.device = torch, torch.device("cuda", gpu.number)
            self._generator = torch.Generator(device=self.device).manual_seed(seed)
        else:
            self._normal = np.random.default_rng(seed).standard_normal(SEED_VALUES, dtype=np.float32)

    @property
    def stream(self) -> Any:
        """A context in which torch's work goes to the GPU's stream."""
        if self.torch is None:
            return nullcontext()
        return self.torch.cuda.stream(self.torch.cuda.ExternalStream(self.gpu.stream, device=self.device))

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Uninitialised memory."""
        if self.torch is not None:
            return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)
        return self.gpu.empty(shape, dtype)

    def normal(self, shape: tuple[int, ...]) -> Any:
        """Gaussian float16 values."""
        if self.torch is not None:
            found = self.torch.randn(shape, dtype=self.torch.float16, device=self.device, generator=self._generator)
            self.torch.cuda.synchronize(self.device)
            return found
        array, n = self.gpu.empty(shape, "float16"), math.prod(shape)
        self.gpu.fill(array, self._normal[: min(n, SEED_VALUES)].astype(np.float16), 2 * n)
        return array

    def integers(self, host: np.ndarray[Any, Any]) -> Any:
        """A copy of int32 values on the host."""
        if self.torch is not None:
            return self.torch.from_numpy(host).to(self.device)
        array = self.gpu.empty(host.shape, "int32")
        self.gpu.upload(host, array)
        self.gpu.wait()
        return array

    def copy(self, source: Any, n_bytes: int) -> Any:
        """The same bytes at another address."""
        from turbocode.kernels._launch import device_array

        found = device_array(source)
        target = self.empty(found.shape, found.dtype)
        self.gpu.wait()
        self.gpu.copy(found, device_array(target), n_bytes)
        return target

    def host(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        from turbocode.kernels._launch import device_array

        found = device_array(array)
        copy = np.empty(found.shape, found.dtype)
        self.gpu.wait()
        self.gpu.download(found, copy)
        self.gpu.wait()
        return copy

    def release(self) -> None:
        """Give back what nothing refers to any more."""
        import gc

        gc.collect()
        if self.torch is not None:
            self.torch.cuda.empty_cache()

    @property
    def free_bytes(self) -> int:
        """Bytes that arrays may still take."""
        if self.torch is not None:
            return int(self.torch.cuda.mem_get_info(self.device)[0])
        return int(self.gpu.free_bytes)
