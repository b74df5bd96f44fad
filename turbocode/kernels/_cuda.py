"""The only place that touches Numba's CUDA side: whether there is a device, kernels, arithmetic that is never fused.

In the simulator (NUMBA_ENABLE_CUDASIM=1) the same kernels run as Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # type: ignore[attr-defined]  # numba-cuda 0.30 asks for it; NumPy 2.5 dropped it

from numba import config, cuda

IS_SIMULATED = bool(config.ENABLE_CUDASIM)

if IS_SIMULATED:

    def add(a: Any, b: Any) -> Any:
        """The float32 a + b, rounded on its own."""
        return np.float32(a) + np.float32(b)

    def multiply(a: Any, b: Any) -> Any:
        """The float32 a * b, rounded on its own."""
        return np.float32(a) * np.float32(b)

else:
    from numba.cuda import libdevice

    @cuda.jit(device=True, inline=True)
    def add(a: Any, b: Any) -> Any:
        """The float32 a + b, rounded on its own: the compiler does not make it part of a multiply-add."""
        return libdevice.fadd_rn(a, b)

    @cuda.jit(device=True, inline=True)
    def multiply(a: Any, b: Any) -> Any:
        """The float32 a * b, rounded on its own."""
        return libdevice.fmul_rn(a, b)


def why_unavailable() -> str | None:
    """None if kernels can run here, else one phrase that says what is missing."""
    if IS_SIMULATED:
        return None
    try:
        if not cuda.is_available():
            return "no CUDA device or driver was found"
    except Exception as error:
        return f"CUDA could not be started: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


def device_name() -> str:
    """The name of the current device."""
    if IS_SIMULATED:
        return "simulator"
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


def multiprocessors() -> int:
    """Streaming multiprocessors of the current device."""
    return 1 if IS_SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)
