"""Host arrays to the memory of a GPU and back, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def up(gpu: Any, host: Any) -> Any:
    """A copy of a host array on the GPU."""
    array = gpu.empty(host.shape, str(host.dtype))
    gpu.upload(np.ascontiguousarray(host), array)
    gpu.wait()
    return array


def down(gpu: Any, array: Any) -> Any:
    """A copy of an array of the GPU on the host."""
    from turbocode.kernels._launch import device_array

    array = device_array(array)
    host = np.empty(array.shape, array.dtype)
    gpu.wait()
    gpu.download(array, host)
    gpu.wait()
    return host
