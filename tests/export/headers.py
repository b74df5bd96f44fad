"""Headers of codecs, the compilers that are here, and shared libraries made of both."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from turbocode.codecs import Codec
from turbocode.export import c_header, default_prefix

STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = {"gcc": ("gcc", "g++"), "clang": ("clang", "clang++")}
BUILDS = {"O0": ("-O0",), "O3": ("-O3", "-march=native")}
DRIVER = """
#include "{p}.h"
void {p}_encode_all(const float *values, long n, {p}_block *blocks, uint8_t *flags);
void {p}_decode_all(const {p}_block *blocks, long n, float *values, float *rotated, float *single);
void {p}_rotate_all(const float *values, long n, float *rotated, float *back);
void {p}_encode_all(const float *values, long n, {p}_block *blocks, uint8_t *flags)
{{
    for (long i = 0; i < n; ++i)
        flags[i] = (uint8_t){p}_encode(values + i * {P}_GROUP_SIZE, blocks + i * {P}_BLOCKS_PER_GROUP);
}}
void {p}_decode_all(const {p}_block *blocks, long n, float *values, float *rotated, float *single)
{{
    for (long i = 0; i < n; ++i) {{
        const {p}_block *group = blocks + i * {P}_BLOCKS_PER_GROUP;
        {p}_decode(group, values + i * {P}_GROUP_SIZE);
        {p}_decode_rotated(group, rotated + i * {P}_GROUP_SIZE);
        for (int j = 0; j < {P}_GROUP_SIZE; ++j) single[i * {P}_GROUP_SIZE + j] = {p}_value(group, j);
    }}
}}
void {p}_rotate_all(const float *values, long n, float *rotated, float *back)
{{
    for (long i = 0; i < n; ++i) {{
        {p}_rotate(values + i * {P}_GROUP_SIZE, rotated + i * {P}_GROUP_SIZE);
        {p}_unrotate(rotated + i * {P}_GROUP_SIZE, back + i * {P}_GROUP_SIZE);
    }}
}}
"""


def require(compiler: str) -> str:
    """The compiler's path; the test is skipped where this one is missing, and fails where all are."""
    found = shutil.which(compiler)
    if found is None:
        if not any(shutil.which(name) for names in COMPILERS.values() for name in names):
            pytest.fail("neither gcc nor clang is installed; the C header cannot be tested")
        pytest.skip(f"{compiler} is not installed")
    return found


def compile_c(command: Sequence[str | Path]) -> None:
    """Run a compiler; the test fails with its messages if it has any."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{' '.join(map(str, command))}\n{done.stderr}"


def driver_source(prefix: str) -> str:
    """C with {prefix}_encode_all, _decode_all and _rotate_all over many groups."""
    return DRIVER.format(p=prefix, P=prefix.upper())


def build_library(
    codecs: Sequence[tuple[str, Codec]], folder: Path, compiler: str, flags: Sequence[str]
) -> ctypes.CDLL:
    """A shared library with the drivers of the codecs, each under its prefix."""
    path = require(compiler)
    for prefix, codec in codecs:
        (folder / f"{prefix}.h").write_text(c_header(codec, prefix=prefix))
    (folder / "driver.c").write_text("".join(driver_source(prefix) for prefix, _ in codecs))
    compile_c([path, *STRICT, *flags, "-shared", "-fPIC", folder / "driver.c", "-o", folder / "driver.so", "-lm"])
    return ctypes.CDLL(str(folder / "driver.so"))


@dataclass
class CompiledCodec:
    """A codec of a library that `build_library` made. Outputs are poisoned before C writes them."""

    library: ctypes.CDLL
    prefix: str
    codec: Codec

    def encode(self, groups: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        blocks = np.full((len(groups), self.codec.block_format.bytes_per_group), 0xA5, np.uint8)
        flags = np.full(len(groups), 0xA5, np.uint8)
        self._call("encode_all", groups, len(groups), blocks, flags)
        return blocks, flags

    def decode(self, blocks: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Values, rotated values, and rotated values read one at a time."""
        outputs = self._poisoned(len(blocks), 3)
        self._call("decode_all", blocks, len(blocks), *outputs)
        return outputs

    def rotate(self, groups: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Rotated values, and these un-rotated."""
        outputs = self._poisoned(len(groups), 2)
        self._call("rotate_all", groups, len(groups), *outputs)
        return outputs

    def _poisoned(self, n: int, count: int) -> list[NDArray[np.float32]]:
        return [np.full((n, self.codec.block_format.group_size), np.nan, np.float32) for _ in range(count)]

    def _call(self, name: str, *arguments: NDArray[np.generic] | int) -> None:
        converted = []
        for argument in arguments:
            if isinstance(argument, int):
                converted.append(ctypes.c_long(argument))
            else:
                assert argument.flags.c_contiguous
                converted.append(ctypes.c_void_p(argument.ctypes.data))
        getattr(self.library, f"{self.prefix}_{name}")(*converted)


def prefix_of(codec: Codec) -> str:
    """A prefix that tells a test's codecs apart."""
    gains = f"_g{codec.n_gains}" if codec.n_gains > 1 else ""
    return f"{default_prefix(codec)}_{codec.rotation.kind}_{codec.norm_mode}{gains}"


def mixture(n: int, group_size: int, seed: int = 0) -> NDArray[np.float32]:
    """Groups float32 (n, group_size): Gaussian ones of all scales, and each kind that has a rule of its own."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((n, group_size)).astype(np.float32)
    kinds = np.arange(n) % 16
    groups[kinds == 1] *= np.exp(rng.uniform(-80, 80, (np.sum(kinds == 1), 1))).astype(np.float32)
    groups[kinds == 2] = rng.standard_normal((np.sum(kinds == 2), 1))
    one_hot = np.flatnonzero(kinds == 3)
    groups[one_hot] = 0.0
    groups[one_hot, rng.integers(0, group_size, len(one_hot))] = rng.standard_normal(len(one_hot))
    groups[kinds == 4] = 0.0
    groups[kinds == 5] *= np.float32(1e-30)
    groups[kinds == 6] *= np.float32(5e37)
    groups[kinds == 7] *= np.float32(65504 / np.sqrt(group_size))
    groups[kinds == 8] *= np.float32(2.0**-24 / np.sqrt(group_size))
    groups[kinds == 9] = rng.choice(np.float32([1e38, -1e38, 3.4e38]), (np.sum(kinds == 9), group_size))
    groups[kinds == 10] *= np.float32(1e-38) * rng.uniform(0, 2, (np.sum(kinds == 10), 1)).astype(np.float32)
    groups[kinds == 11] = rng.integers(-3, 4, (np.sum(kinds == 11), group_size))
    groups[kinds == 12] = rng.standard_normal((np.sum(kinds == 12), group_size)).astype(np.float16)
    for kind, special in ((13, np.nan), (14, np.inf), (15, -np.inf)):
        rows = np.flatnonzero(kinds == kind)
        groups[rows, rng.integers(0, group_size, len(rows))] = special
    return groups
