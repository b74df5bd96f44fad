"""What this installation and machine offer. Everything heavy is imported when asked for: `--version` reads this too."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def turbocode_version() -> str:
    """The installed version, `not installed` where the package runs from a source tree."""
    try:
        return metadata.version("turbocode")
    except metadata.PackageNotFoundError:
        return "not installed"


def memory_limit() -> int:
    """Bytes of memory this process may use: the machine's, or a container's limit where that is less."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or the word max
            limits.append(int(path.read_text()))
    return min(limits)
