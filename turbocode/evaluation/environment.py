"""What this installation and machine offer. Everything heavy is imported when asked for: `--version` reads this too."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import turbocode
from turbocode.evaluation.machine import cpu_model, usable_cores

_REQUIRED = ("numpy", "numba", "h5py", "scipy", "click", "rich", "pydantic")
PACKAGES = (*_REQUIRED, "numba-cuda", "hdf5plugin", "torch", "transformers")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CUDA_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_NAME_BYTES = 256


def memory_limit() -> int:
    """Bytes of memory this process may use: the machine's, or a container's limit where that is less."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or the word max
            limits.append(int(path.read_text()))
    return min(limits)


def describe_environment(folder: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """A JSON object: versions, machine, gpu, hdf5, and of `folder` its free space and whether files can be locked.

    What cannot be found out is None; nothing here raises because something is absent.
    """
    return {
        "versions": {
            "turbocode": turbocode.__version__,
            "python": platform.python_version(),
            **{name: _package_version(name) for name in PACKAGES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "memory_bytes": memory_limit(),
        },
        "gpu": _describe_gpu(),
        "hdf5": _describe_hdf5(),
        "folder": _describe_folder(Path(folder)),
    }


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _describe_gpu() -> dict[str, Any]:
    """The CUDA driver's version and devices, asked through its C interface so that no GPU package is needed."""
    found: dict[str, Any] = {"driver": None, "devices": [], "problem": None}
    for name in _CUDA_DRIVERS:
        with suppress(OSError):
            driver = ctypes.CDLL(name)
            break
    else:
        return {**found, "problem": "no NVIDIA driver is installed"}
    status = driver.cuInit(0)
    if status != 0:
        return {**found, "problem": f"the NVIDIA driver does not start (CUDA error {status})"}
    number, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["driver"] = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    driver.cuDeviceGetCount(ctypes.byref(count))
    for ordinal in range(count.value):
        device, name_buffer = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        if driver.cuDeviceGet(ctypes.byref(device), ordinal) == 0:
            driver.cuDeviceGetName(name_buffer, _NAME_BYTES, device)
            found["devices"].append(name_buffer.value.decode(errors="replace"))
    return found


def cuda_devices() -> list[str]:
    """Names of the GPUs that the driver shows, in its order."""
    return list(_describe_gpu()["devices"])


def cuda_problem() -> str | None:
    """None if Numba can use a GPU here, else one phrase that says what is missing."""
    gpu = _describe_gpu()
    if gpu["problem"]:
        return str(gpu["problem"])
    if not gpu["devices"]:
        return "no NVIDIA GPU is visible"
    return None if _package_version("numba-cuda") else "the package numba-cuda is not installed"


def _describe_hdf5() -> dict[str, Any]:
    from turbocode.dumps.hdf5 import h5py
    from turbocode.dumps.storage import FILTER_NAMES

    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers the filters it holds
    return {
        "version": h5py.version.hdf5_version,
        "filters": {name: bool(h5py.h5z.filter_avail(code)) for code, name in FILTER_NAMES.items()},
    }


def _describe_folder(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"path": str(folder.absolute()), "free_bytes": None, "writable": False, "locks": None}
    with suppress(OSError):
        found["free_bytes"] = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            found["writable"] = True
            if sys.platform != "win32":
                import fcntl

                found["locks"] = False
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found["locks"] = True
    return found
