"""Slabs: how many tokens of one head are handled at once under a memory limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from turbocode.errors import OptionError

MAX_SLAB_TOKENS = 1 << 16  # longer slabs gain nothing and make progress coarse
BYTES_PER_VALUE = 24  # float16 or float32 input, float32 output, a float64 temporary, blocks and statistics


def slab_tokens(head_dim: int, chunk_tokens: int, max_memory: int, run: int = 1) -> int:
    """Tokens in one slab: whole chunks where they fit, whole runs of tokens that are coded together in any case.

    Raises OptionError if not even one run of tokens fits.
    """
    fit = max_memory // (head_dim * BYTES_PER_VALUE)
    if fit < run:
        what = "one vector" if run == 1 else f"a run of {run} vectors"
        raise OptionError(f"{max_memory} bytes of memory do not hold {what} of {head_dim} values")
    fit, step = min(fit, MAX_SLAB_TOKENS), math.lcm(chunk_tokens, run)
    return fit // step * step or fit // run * run


def places(
    n_seqs: int, n_heads: int, n_tokens: int, size: int, *, is_by_row: bool
) -> Iterator[tuple[int, int, int, int]]:
    """(sequence, head, start, stop) of all slabs of a side: head after head, or, by row, all heads of a slab."""
    for seq in range(n_seqs):
        if is_by_row:
            yield from ((seq, head, *slab) for slab in slabs(n_tokens, size) for head in range(n_heads))
        else:
            yield from ((seq, head, *slab) for head in range(n_heads) for slab in slabs(n_tokens, size))


def slabs(n_tokens: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive slabs of `size` tokens that cover n_tokens."""
    for start in range(0, n_tokens, size):
        yield start, min(n_tokens, start + size)
