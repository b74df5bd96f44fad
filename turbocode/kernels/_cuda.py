"""The only place that touches Numba's CUDA side: kernels, and arithmetic that is never fused.

In the simulator (NUMBA_ENABLE_CUDASIM=1) the same kernels run as Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # numba-cuda 0.30 asks for it; NumPy 2.5 dropped it

from numba import config
from numba import cuda as cuda

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


def multiprocessors() -> int:
    """Streaming multiprocessors of the current device."""
    return 1 if IS_SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)
