"""Tiles of stored rows on their way to the tensor cores: copied to a stage ahead, then decoded to float16 rows."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.formats.block_format import BlockFormat
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.attention.eight_values import EIGHT, eight_values
from turbocode.kernels.attention.lookup import Lookup
from turbocode.kernels.attention.pages import LEAST_TOKENS, place_of_token
from turbocode.kernels.attention.word_copy import WORD, copy_end, copy_word

int32, uint32, uint64 = types.int32, types.uint32, types.uint64


class TileDecoder(NamedTuple):
    """fetch(stage, rows, paging, token, stop, thread) : start copying the tile from `token` on, a multiple of the tile,
        of which tokens before `stop`, at least one, are there; others are zeros. rows : uint64 address of token 0 of a
        head, with pages of its first row in page 0; paging : (address of the sequence's pages, bytes from page to page,
        log2 of a page's tokens), uint64
    begin(rows, thread, places) : set places uint32 (places,) for tiles of that head
    decode(stage, target, places, words, copy) : a stage to float16 rows at a shared address
    """

    places: int
    fetch: Any
    begin: Any
    decode: Any


@functools.cache
def tile_decoder(
    form: BlockFormat,
    head_dim: int,
    lookup: Lookup,
    tile: int,
    target_bytes: int,
    threads: int,
    is_late: bool,
    is_paged: bool,
) -> TileDecoder:
    """The functions for a block of `threads`; target_bytes : from one float16 row to the next."""
    row_bytes, block_bytes, n = form.bytes_per_vector(head_dim), form.bytes_per_block, form.values_per_block
    stage_words = -(-(tile * row_bytes + (WORD - 2 if is_late else 0)) // WORD)
    eight = eight_values(form, lookup)
    start_eight, decode_eight, is_halved = eight.start, eight.decode, eight.is_halved
    parts, parts_of_block = head_dim // EIGHT, n // EIGHT
    # An even number of rows at once, so that all of a thread's runs begin at the same bit of a word.
    at_once = min(tile, threads // parts // 2 * 2)
    steps = -(-tile // at_once)
    is_even = steps * at_once == tile and at_once * parts == threads
    n_places, part_bytes = eight.places + 2, LEAST_TOKENS * row_bytes
    target_at, token_at = eight.places, eight.places + 1

    @device
    def lateness(rows: Any) -> Any:
        late = uint32(0)
        if is_late:
            late = uint32(rows & uint64(WORD - 1))
        return late

    @device
    def address(source: Any, paging: Any, token: Any, byte: Any) -> Any:
        """Where a byte of the tile lies."""
        if is_paged:
            entries, page_gap, page_log2 = paging
            part = uint32(byte // uint32(part_bytes))  # whose rows lie side by side
            page, within = place_of_token(uint32(token + uint32(part * uint32(LEAST_TOKENS))), entries, page_log2)
            rest = uint64(uint32(byte - uint32(part * uint32(part_bytes))))
            return source + (page * page_gap + within * uint64(row_bytes) + rest)
        return source + uint64(byte)

    @device
    def fetch(stage: Any, rows: Any, paging: Any, token: Any, stop: Any, thread: Any) -> None:
        late = lateness(rows)
        source = rows - uint64(late)
        if not is_paged:
            source = source + uint64(token) * uint64(row_bytes)
        n_bytes = int32(int32(int32(stop - token) * int32(row_bytes)) + int32(late))
        word = uint32(thread)
        while word < uint32(stage_words):
            byte = uint32(word * uint32(WORD))
            of = source
            if int32(byte) < n_bytes:  # else there may be no such page
                of = address(source, paging, token, byte)
            copy_word(at(stage, byte), of, int32(n_bytes - int32(byte)))
            word = uint32(word + uint32(threads))
        rest = uint32(uint32(n_bytes) & uint32(WORD - 1))
        end = uint32(uint32(n_bytes) - rest)
        if rest != uint32(0) and end < uint32(stage_words * WORD):
            copy_end(at(stage, end), address(source, paging, token, end), rest, thread)

    @device
    def begin(rows: Any, thread: Any, places: Any) -> None:
        token = uint32(thread // uint32(parts))
        part = uint32(thread - uint32(token * uint32(parts)))
        block = uint32(part // uint32(parts_of_block))
        within = uint32(part - uint32(block * uint32(parts_of_block)))
        row = uint32(lateness(rows) + uint32(token * uint32(row_bytes)))
        start_eight(uint32(row + uint32(block * uint32(block_bytes))), within, places)
        byte = uint32(part * uint32(2 * EIGHT))
        if is_halved:
            byte = uint32(uint32(block * uint32(2 * n)) + uint32(within * uint32(EIGHT)))
        places[target_at] = uint32(uint32(token * uint32(target_bytes)) + byte)
        places[token_at] = token

    @device
    def decode(stage: Any, target: Any, places: Any, words: Any, copy: Any) -> None:
        y = cuda.local.array(4, uint32)
        for step in range(steps):
            token = uint32(places[token_at] + uint32(step * at_once))
            if is_even or (places[token_at] < uint32(at_once) and token < uint32(tile)):
                decode_eight(stage, places, uint32(step * at_once * row_bytes), words, copy, y)
                spot = at(target, uint32(places[target_at] + uint32(step * at_once * target_bytes)))
                if is_halved:
                    _ptx.store_shared_u32x2(spot, y[0], y[1])
                    _ptx.store_shared_u32x2(at(spot, uint32(n)), y[2], y[3])
                else:
                    _ptx.store_shared_u32x4(spot, y[0], y[1], y[2], y[3])

    return TileDecoder(n_places, fetch, begin, decode)
