"""Machine code of kernels kept on disk, so that a kernel is compiled once per machine and not once per process.

A kernel is a closure over its variant, so its key is made of everything that its code is made of: bytecode, constants,
the values it closes over, the device functions it calls, and theirs; with the versions of what compiles it. What
changes any of these makes another key; nothing is ever looked up by a name or a date.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

_COMPILERS = ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvrtc")
_INSTRUCTIONS = ("_cuda.py", *sorted(path.name for path in Path(__file__).parent.glob("_ptx*.py")))
_PLAIN = (bool, int, float, str, bytes, type(None), np.generic)


class NotKnown(Exception):
    """Something in a kernel whose meaning cannot be told from its value."""


def cache_folder() -> Path:
    """Where compiled kernels lie: $TURBOCODE_CACHE_DIR, else turbocode/kernels in the user's cache."""
    chosen = os.environ.get("TURBOCODE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turbocode" / "kernels"


@functools.cache
def _surroundings() -> str:
    versions = []
    for name in _COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    here = Path(__file__).parent
    sources = [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in _INSTRUCTIONS]
    return json.dumps([sys.version, versions, sources])


class _Reader:
    """Feeds a hash with what a function means."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256(_surroundings().encode())
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []

    def word(self, *words: Any) -> None:
        self.hash.update(repr(words).encode() + b"\0")

    def read(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.word(type(value).__name__, value)
            return
        if id(value) in self._seen:
            self.word("again", self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # so that no other object gets its number
        if isinstance(value, np.ndarray):
            self.word("array", value.dtype.str, value.shape)
            self.hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tuple | list | frozenset):
            self.word(type(value).__name__, len(value))
            for part in value:
                self.read(part)
        elif isinstance(value, CodeType):
            self.code(value)
        elif isinstance(value, FunctionType):
            self.function(value)
        elif hasattr(value, "py_func") and hasattr(value, "targetoptions"):
            self.word("dispatcher", sorted((key, repr(option)) for key, option in value.targetoptions.items()))
            self.function(value.py_func)
        elif hasattr(value, "ptx"):
            self.word("instruction", value.ptx)
        elif isinstance(value, ModuleType | type) or type(value).__module__.startswith(("numba.", "numba_cuda.")):
            # Types, modules, intrinsics: of compilers, whose versions are part of the key, or of _cuda.py and _ptx.py
            self.word("named", type(value).__name__, getattr(value, "__name__", None) or str(value))
        else:
            raise NotKnown(f"{type(value).__module__}.{type(value).__qualname__}")

    def code(self, code: CodeType) -> None:
        self.word("code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        for constant in code.co_consts:
            self.read(constant)

    def function(self, function: FunctionType) -> None:
        code = function.__code__
        self.word("function", function.__name__)
        self.code(code)
        for cell in function.__closure__ or ():
            self.read(cell.cell_contents)
        for name in code.co_names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            self.word("global", name)
            self.read(value)
            if isinstance(value, ModuleType) and value.__name__.startswith("turbocode."):
                for attribute in code.co_names:
                    if hasattr(value, attribute):
                        self.word("attribute", attribute)
                        self.read(getattr(value, attribute))


def key_of(dispatcher: Any, n_args: int, compute_capability: tuple[int, int]) -> str | None:
    """The key of a kernel for GPUs of a compute capability; None if it is made of something that has none."""
    reader = _Reader()
    try:
        reader.word(n_args, compute_capability)
        reader.read(dispatcher)
    except NotKnown:
        return None
    return reader.hash.hexdigest()


def find(key: str) -> tuple[str, bytes] | None:
    """(name of the kernel's function, cubin) from the cache, or None."""
    try:
        stored = (cache_folder() / f"{key}.kernel").read_bytes()
        name, size, digest = json.loads(stored[: stored.index(b"\n")])
        cubin = stored[stored.index(b"\n") + 1 :]
    except (OSError, ValueError):
        return None
    is_whole = len(cubin) == size and hashlib.sha256(cubin).hexdigest() == digest
    return (name, cubin) if is_whole else None


def keep(key: str, name: str, cubin: bytes) -> None:
    """Put a kernel into the cache; where that is not possible, it is compiled again next time."""
    folder = cache_folder()
    head = json.dumps([name, len(cubin), hashlib.sha256(cubin).hexdigest()]).encode()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head + b"\n" + cubin)
            Path(path).replace(folder / f"{key}.kernel")
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
