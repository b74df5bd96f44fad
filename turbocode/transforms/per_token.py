"""What a transform keeps of every token beside its block: bytes that decoding needs and attention does not read yet."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.transforms.fitted import Arrays, Transform
from turbocode.transforms.head_map import Floats


class TokenMap(Protocol):
    """n_bytes : kept of every token, before its block."""

    n_bytes: int

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(what is coded float32 (N, D), what is kept uint8 (N, n_bytes)) of vectors (N, D) of a KV head."""
        ...

    def join(self, coded: NDArray[np.float32], kept: NDArray[np.uint8], head: int) -> NDArray[np.float32]:
        """Vectors float32 (N, D) of what was decoded and kept."""
        ...


class TokenTransform(Transform, Protocol):
    """A transform with bytes for every token; it has to be the last of a chain, and its head_map is the identity."""

    @staticmethod
    def token_map(arrays: Arrays, n_heads: int, head_dim: int) -> TokenMap:
        """What the arrays stand for. Raises DataError."""
        ...


def as_bytes(numbers: Floats) -> NDArray[np.uint8]:
    """Numbers (N, R) as float16, little-endian, (N, 2 R) bytes; cut to float16's range."""
    return np.ascontiguousarray(np.clip(numbers, -65504, 65504).astype("<f2")).view(np.uint8)


def as_numbers(kept: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers float32 (N, R) of `as_bytes`."""
    return np.ascontiguousarray(kept).view("<f2").astype(np.float32)
