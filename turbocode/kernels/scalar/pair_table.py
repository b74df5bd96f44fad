"""Two centroids a look-up: a table of all pairs of indices, as two float16 in a word, in shared memory.

Each lane has a copy of its own, all of it in one bank, so that no look-up waits for another: entry i of lane l is word
32 i + l. The centroids are scaled so that they are nearly float16 numbers (half_scale.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx, _ptx_bits
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES
from turbocode.kernels.scalar.gpu_steps import CENTROIDS_AT, HALF_SCALE_AT
from turbocode.kernels.scalar.place_tensor import chunk_places, high_places

uint32, uint64 = types.uint32, types.uint64
_COPIES = 32
_ENTRY_LOG2 = 7  # of the bytes of all lanes' copies of an entry


class PairTable(NamedTuple):
    """words : of shared memory; margin : bytes that `read` may touch behind the last block

    fill(pairs, table, thread, threads) : write the table; a barrier of the block must follow
    spot(tile, offset, t) -> places : where lane t of the group whose first block is `offset` bytes into the tile reads
    read(places, chunk, pairs, lane_bytes, mirror, words) : set the four words of a chunk; pairs : address of the table,
        lane_bytes : 4 times the lane's number, mirror : what turns the chunk's indices around
    """

    words: int
    margin: int
    fill: Any
    spot: Any
    read: Any


def pair_table(form: BlockFormat) -> PairTable:
    """The functions for one scalar format of 2, 3 or 4 bits and a symmetric codebook."""
    bits, is_split = form.bits, form.layout is Layout.SPLIT_PLANES
    n_entries = 1 << (2 * bits)
    n_words, levels = n_entries * _COPIES, (1 << bits) - 1
    entry_mask = (n_entries - 1) << _ENTRY_LOG2

    @device
    def fill(pairs: Any, table: Any, thread: Any, threads: Any) -> None:
        scale = _ptx.load_f32(table + uint64(4 * HALF_SCALE_AT))
        word = uint32(thread)
        while word < uint32(n_words):
            entry = uint32(word >> uint32(5))
            if is_split:  # four low bits, then two high ones
                high = uint32(entry >> uint32(4))
                a = uint32(uint32(entry & uint32(3)) | uint32(uint32(high & uint32(1)) << uint32(2)))
                b = uint32(
                    uint32(uint32(entry >> uint32(2)) & uint32(3)) | uint32(uint32(high & uint32(2)) << uint32(1))
                )
            else:
                a, b = uint32(entry & uint32(levels)), uint32(entry >> uint32(bits))
            first = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + a)))
            second = _ptx.load_f32(table + uint64(uint32(4) * uint32(uint32(CENTROIDS_AT) + b)))
            _ptx.store_shared_u32(at(pairs, uint32(word * uint32(4))), _ptx.pack_halves(first * scale, second * scale))
            word = uint32(word + uint32(threads))

    look_up = _ptx_bits.bitwise(lambda place, mask, lane: (place & mask) | lane)

    def shifted(bit: int) -> Any:
        """shift(word): what begins at `bit` moved to where the entry begins in an address."""
        distance = bit - _ENTRY_LOG2
        left, right = max(0, -distance), max(0, distance)

        @device
        def shift(word: Any) -> Any:
            return uint32(word << uint32(left)) if left else uint32(word >> uint32(right))

        return shift

    s0, s1, s2, s3 = (shifted((4 if is_split else 2 * bits) * q) for q in range(4))
    h0, h1, h2, h3 = (shifted(2 * q - 4) for q in range(4))
    low_mask = 15 << _ENTRY_LOG2
    spot, indices = _index_reader(form)

    @device
    def one(place: Any, pairs: Any, lane_bytes: Any) -> Any:
        return _ptx.load_shared_u32(at(pairs, look_up(place, uint32(entry_mask), lane_bytes)))

    @device
    def read(places: Any, chunk: Any, pairs: Any, lane_bytes: Any, mirror: Any, words: Any) -> None:
        low, high = indices(places, chunk)
        w = 4 * chunk
        if is_split:
            low, high = uint32(low ^ mirror), uint32(high ^ uint32(mirror >> uint32(16)))
            mask = uint32(low_mask)
            words[w] = one(_ptx_bits.choose_bits(mask, s0(low), h0(high)), pairs, lane_bytes)
            words[w + 1] = one(_ptx_bits.choose_bits(mask, s1(low), h1(high)), pairs, lane_bytes)
            words[w + 2] = one(_ptx_bits.choose_bits(mask, s2(low), h2(high)), pairs, lane_bytes)
            words[w + 3] = one(_ptx_bits.choose_bits(mask, s3(low), h3(high)), pairs, lane_bytes)
        else:
            low = uint32(low ^ mirror)
            words[w], words[w + 1] = one(s0(low), pairs, lane_bytes), one(s1(low), pairs, lane_bytes)
            words[w + 2], words[w + 3] = one(s2(low), pairs, lane_bytes), one(s3(low), pairs, lane_bytes)

    return PairTable(n_words, 0 if bits == 2 or is_split else 4, fill, spot, read)


def _index_reader(form: BlockFormat) -> tuple[Any, Any]:
    """(spot, indices) : spot of PairTable; indices(places, chunk) -> the lane's eight indices and 0, or its two planes.

    Words of 32 bits begin at multiples of four bytes, indices of 3 and 4 bits do not: two words are read, and shifted.
    """
    bits, is_split = form.bits, form.layout is Layout.SPLIT_PLANES
    n_chunks = form.group_size // LANES // CHUNK
    p0, p1, p2, p3 = places = chunk_places(form)
    h0, h1, h2, h3 = high_places(form)
    assert bits == 2 or is_split or all((place - p0) % 4 == 0 for place in places[:n_chunks])

    @device
    def start_of(chunk: Any) -> Any:
        return p0 if chunk == 0 else p1 if chunk == 1 else p2 if chunk == 2 else p3

    if is_split:

        @device
        def spot(tile: Any, offset: Any, t: Any) -> Any:
            return (
                _ptx.anchored(at(tile, uint32(offset + uint32(t * uint32(2))))),
                _ptx.anchored(at(tile, uint32(offset + t))),
            )

        @device
        def indices(places: Any, chunk: Any) -> Any:
            high = h0 if chunk == 0 else h1 if chunk == 1 else h2 if chunk == 2 else h3
            low = _ptx.load_shared_u16(at(places[0], start_of(chunk)))
            return low, _ptx.load_shared_u8(at(places[1], high))

    elif bits == 2:

        @device
        def spot(tile: Any, offset: Any, t: Any) -> Any:
            return (_ptx.anchored(at(tile, uint32(offset + uint32(t * uint32(2))))),)

        @device
        def indices(places: Any, chunk: Any) -> Any:
            return _ptx.load_shared_u16(at(places[0], start_of(chunk))), uint32(0)

    else:

        @device
        def spot(tile: Any, offset: Any, t: Any) -> Any:
            byte = uint32(offset + uint32(p0) + uint32(t * uint32(bits)))
            shift = uint32(uint32(byte & uint32(3)) << uint32(3))
            return _ptx.anchored(at(tile, uint32(byte & uint32(0xFFFFFFFC)))), _ptx.anchored(shift)

        @device
        def indices(places: Any, chunk: Any) -> Any:
            place = at(places[0], start_of(chunk) - p0)
            first, second = _ptx.load_shared_u32(place), _ptx.load_shared_u32(at(place, 4))
            return _ptx.funnel_shift_right(first, second, places[1]), uint32(0)

    return spot, indices
