"""Which software wrote a file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import turbocode

_PACKAGES = ("numpy", "numba", "scipy", "h5py")


def provenance(command: str) -> dict[str, Any]:
    """{"command", "versions"}: of an output. No time, no host: equal inputs give equal bytes."""
    versions = {"turbocode": turbocode.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {"command": command, "versions": versions}
