"""What a transform keeps of every token beside its block: bytes that decoding needs and attention does not read yet.

What a run of tokens shares (a mean, scales) is dealt out to its tokens in equal pieces, so that a cache is still one
row of bytes a token, in files too. Such a run is coded and decoded as a whole: a call begins where a run begins. The
tokens after the last whole run have the calibration's numbers instead and keep zeros; a running cache holds them in 16
bits until the run is whole.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError
from turbocode.transforms.fitted import Arrays, Transform, stored
from turbocode.transforms.head_map import Floats

RUNS = (16, 32, 64, 128, 256)  # tokens; a running cache holds so many in 16 bits


class TokenMap(Protocol):
    """n_bytes : kept of every token, before its block; run : tokens that share some of them, 1 for none."""

    n_bytes: int
    run: int

    def split(self, vectors: Floats, head: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(what is coded float32 (N, D), what is kept uint8 (N, n_bytes)) of vectors (N, D) of a KV head,
        the first of which begins a run."""
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


def bytes_per_token(n_numbers: int, run: int) -> int:
    """Bytes of each token for n_numbers float16 that `run` tokens share."""
    return -(-2 * n_numbers // run)


def dealt(numbers: Floats, run: int) -> NDArray[np.uint8]:
    """Numbers (R, C) of R runs as float16, cut to its range, dealt out to the tokens: (R * run, bytes_per_token)."""
    whole = as_bytes(numbers)
    width = bytes_per_token(numbers.shape[1], run)
    return np.pad(whole, ((0, 0), (0, run * width - whole.shape[1]))).reshape(len(whole) * run, width)


def gathered(kept: NDArray[np.uint8], n_numbers: int, run: int) -> NDArray[np.float32]:
    """The numbers float32 (R, n_numbers) of `dealt`."""
    return as_numbers(kept.reshape(len(kept) // run, run * kept.shape[1])[:, : 2 * n_numbers])


def check_run(name: str, run: int) -> None:
    """Raise OptionError for a length of runs that is not allowed."""
    if run not in RUNS:
        raise OptionError(f"{name} has run {run}; allowed are {', '.join(map(str, RUNS))}")


def stored_run(arrays: Arrays) -> int:
    """The length of runs among a transform's arrays. Raises DataError for one that is not allowed."""
    run = int(stored(arrays, "run", (1, 1))[0, 0])
    if run not in RUNS:
        raise DataError(f"a transform has runs of {run} tokens; allowed are {', '.join(map(str, RUNS))}")
    return run
