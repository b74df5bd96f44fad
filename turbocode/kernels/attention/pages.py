"""Where a token of a paged cache lies: a sequence's tokens are in pages of 2**log2 of them, anywhere in memory."""

from __future__ import annotations

from typing import Any

from turbocode.kernels import _ptx
from turbocode.kernels._cuda import device, types

LEAST_TOKENS = 16  # of a page: rows of so many tokens are whole words of 16 bytes

uint32, uint64 = types.uint32, types.uint64


@device
def place_of_token(token: Any, entries: Any, page_log2: Any) -> Any:
    """(page, number of the token in it), uint64; entries : address of the sequence's int32 page numbers."""
    log2 = uint32(page_log2)
    page = _ptx.load_u32(entries + uint64(uint32(token >> log2)) * uint64(4))
    return uint64(page), uint64(uint32(token & uint32(uint32(uint32(1) << log2) - uint32(1))))
