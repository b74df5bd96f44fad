"""Where the groups of a batch of vectors lie: (n_seqs, n_heads, n_tokens, head_dim) with any strides but the last.

Kernels number groups through: tokens of a head side by side, heads of a sequence, sequences.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from turbocode.errors import OptionError
from turbocode.kernels._cuda import device, types

N_GEOMETRY_ARGS = 12  # Geometry.arguments, capacity, starts
MAX_GROUPS = 1 << 31  # so that rounding up to whole blocks stays within uint32
uint32, uint64 = types.uint32, types.uint64


@functools.cache
def group_address(is_strided: bool, group_bytes: int) -> Any:
    """The function that gives the uint64 address of the uint32 group; without strides the batch is contiguous."""
    if is_strided:

        @device
        def address(
            base: Any, group: Any, per_vector: Any, n_tokens: Any, n_heads: Any, token: Any, head: Any, seq: Any
        ) -> Any:
            vector = uint32(group // uint32(per_vector))
            part = uint32(group - uint32(vector * uint32(per_vector)))
            row = uint32(vector // uint32(n_tokens))
            t = uint32(vector - uint32(row * uint32(n_tokens)))
            s = uint32(row // uint32(n_heads))
            h = uint32(row - uint32(s * uint32(n_heads)))
            offset = uint64(s) * uint64(seq) + uint64(h) * uint64(head) + uint64(t) * uint64(token)
            return base + (offset + uint64(part) * uint64(group_bytes))

    else:

        @device
        def address(
            base: Any, group: Any, per_vector: Any, n_tokens: Any, n_heads: Any, token: Any, head: Any, seq: Any
        ) -> Any:
            return base + uint64(group) * uint64(group_bytes)

    return address


@dataclass(frozen=True)
class Geometry:
    """Counts, and strides in bytes of tokens, heads and sequences, in and out.

    Two arguments follow those of `arguments`: the tokens that a cache has room for, and the address of int32 (n_seqs,)
    with the token at which each sequence goes on in it, or 0 where the output begins at its first token.
    """

    n_seqs: int
    n_heads: int
    n_tokens: int
    per_vector: int
    in_strides: tuple[int, int, int]
    out_strides: tuple[int, int, int]
    reads_strided: bool
    writes_strided: bool

    @property
    def n_groups(self) -> int:
        return self.n_seqs * self.n_heads * self.n_tokens * self.per_vector

    def arguments(self) -> tuple[int, ...]:
        """The kernel arguments that describe the batch."""
        return (
            self.n_groups,
            self.per_vector,
            self.n_tokens,
            self.n_heads,
            *self.in_strides,
            *self.out_strides,
        )


def geometry(
    shape: tuple[int, ...],
    in_strides: tuple[int, ...],
    in_vector_bytes: int,
    out_strides: tuple[int, ...],
    out_vector_bytes: int,
    per_vector: int,
) -> Geometry:
    """The geometry of vectors of `shape`, without head_dim, zero to three axes. Strides are in bytes, not negative.

    Raises OptionError where a kernel cannot number the groups.
    """
    if len(shape) > 3:
        raise OptionError(f"vectors in {len(shape)} axes; allowed are up to three: (n_seqs, n_kv_heads, n_tokens)")
    n_groups = per_vector
    for n in shape:
        n_groups *= n
    if n_groups >= MAX_GROUPS:
        raise OptionError(f"{n_groups} groups in one call; allowed are fewer than {MAX_GROUPS}")
    if min((*in_strides, *out_strides, 0)) < 0:
        raise OptionError("an array runs backwards (negative stride); copy it first")
    missing = 3 - len(shape)
    n_seqs, n_heads, n_tokens = (1,) * missing + tuple(shape)
    full_in, full_out = (0,) * missing + tuple(in_strides), (0,) * missing + tuple(out_strides)
    return Geometry(
        n_seqs,
        n_heads,
        n_tokens,
        per_vector,
        (full_in[2], full_in[1], full_in[0]),
        (full_out[2], full_out[1], full_out[0]),
        not _is_contiguous(shape, in_strides, in_vector_bytes),
        not _is_contiguous(shape, out_strides, out_vector_bytes),
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], vector_bytes: int) -> bool:
    expected = vector_bytes
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n > 1 and stride != expected:
            return False
        expected *= n
    return True
