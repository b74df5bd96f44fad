"""Where the indices of the lanes of tensor_lanes.py belong in the blocks of a group, which lie in shared memory."""

from __future__ import annotations

from typing import Any

from turbocode.formats.block_format import BlockFormat, Layout
from turbocode.kernels import _ptx
from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.fwht.lanes import CHUNK
from turbocode.kernels.fwht.tensor_lanes import LANES

uint32 = types.uint32
_MAX_CHUNKS = 4


def chunk_places(form: BlockFormat, bits: int | None = None) -> tuple[int, int, int, int]:
    """Where the indices of each chunk begin, in bytes from the group's first block; 0 for chunks that there are not.

    bits : of a value in the stream, those of the format (2 for the low plane of split ones) by default
    """
    per_value = bits or (2 if form.layout is Layout.SPLIT_PLANES else form.bits)
    places = [0] * _MAX_CHUNKS
    for chunk in range(form.group_size // (CHUNK * LANES)):
        block, within = divmod(chunk * CHUNK * LANES, form.values_per_block)
        places[chunk] = block * form.bytes_per_block + 2 + within * per_value // 8
    first, second, third, fourth = places
    return first, second, third, fourth


def high_places(form: BlockFormat) -> tuple[int, int, int, int]:
    """Where the high plane of each chunk begins, for split planes."""
    first, second, third, fourth = (place + form.values_per_block // 4 for place in chunk_places(form, 1))
    return first, second, third, fourth


def lane_placer(form: BlockFormat) -> tuple[Any, Any]:
    """(spot, put) : spot(block, t) -> places, for lane t and the address of the group's first block

    put(places, words) : store the words of the lane's chunks there: two chunks of 2 bits a word, or one of 3 or 4; for
        split planes the low planes, two chunks a word, then the high ones, two in the bytes 0 and 2 of a word
    """
    if form.layout is Layout.SPLIT_PLANES:
        return _split_placer(form)
    return {2: _two_bits_placer, 3: _three_bits_placer, 4: _four_bits_placer}[form.bits](form)


def _split_placer(form: BlockFormat) -> tuple[Any, Any]:
    n_chunks = form.group_size // LANES // CHUNK
    n_words = -(-n_chunks // 2)
    p0, p1, p2, p3 = chunk_places(form)
    h0, h1, h2, h3 = high_places(form)

    @device
    def spot(block: Any, t: Any) -> Any:
        return _ptx.anchored(at(block, uint32(t * uint32(2)))), _ptx.anchored(at(block, t))

    @device
    def two(places: Any, words: Any, w: Any, p: Any, q: Any, h: Any, i: Any) -> None:
        low, high = words[w], words[n_words + w]
        _ptx.store_shared_u16(at(places[0], p), low)
        _ptx.store_shared_u8(at(places[1], h), high)
        if 2 * w + 1 < n_chunks:
            _ptx.store_shared_u16(at(places[0], q), uint32(low >> uint32(16)))
            _ptx.store_shared_u8(at(places[1], i), uint32(high >> uint32(16)))

    @device
    def put(places: Any, words: Any) -> None:
        two(places, words, 0, p0, p1, h0, h1)
        if n_chunks > 2:
            two(places, words, 1, p2, p3, h2, h3)

    return spot, put


def _two_bits_placer(form: BlockFormat) -> tuple[Any, Any]:
    n_chunks = form.group_size // LANES // CHUNK
    p0, p1, p2, p3 = chunk_places(form)

    @device
    def spot(block: Any, t: Any) -> Any:
        return (_ptx.anchored(at(block, uint32(t * uint32(2)))),)

    @device
    def put(places: Any, words: Any) -> None:
        _ptx.store_shared_u16(at(places[0], p0), words[0])
        if n_chunks > 1:
            _ptx.store_shared_u16(at(places[0], p1), uint32(words[0] >> uint32(16)))
        if n_chunks > 2:
            _ptx.store_shared_u16(at(places[0], p2), words[1])
            _ptx.store_shared_u16(at(places[0], p3), uint32(words[1] >> uint32(16)))

    return spot, put


def _three_bits_placer(form: BlockFormat) -> tuple[Any, Any]:
    n_chunks = form.group_size // LANES // CHUNK
    p0, p1, p2, p3 = chunk_places(form)

    @device
    def spot(block: Any, t: Any) -> Any:
        is_odd = uint32(t & uint32(1))  # three bytes of an odd lane begin at an odd address
        start = at(block, uint32(t * uint32(3)))
        wide = _ptx.anchored(at(start, is_odd))
        narrow = _ptx.anchored(at(start, uint32(uint32(2) - uint32(is_odd << uint32(1)))))
        up = _ptx.anchored(uint32(is_odd << uint32(3)))
        return wide, narrow, up, _ptx.anchored(uint32(uint32(16) - uint32(is_odd << uint32(4))))

    @device
    def three(places: Any, word: Any, p: Any) -> None:
        _ptx.store_shared_u16(at(places[0], p), uint32(word >> places[2]))
        _ptx.store_shared_u8(at(places[1], p), uint32(word >> places[3]))

    @device
    def put(places: Any, words: Any) -> None:
        three(places, words[0], p0)
        if n_chunks > 1:
            three(places, words[1], p1)
        if n_chunks > 2:
            three(places, words[2], p2)
            three(places, words[3], p3)

    return spot, put


def _four_bits_placer(form: BlockFormat) -> tuple[Any, Any]:
    n_chunks = form.group_size // LANES // CHUNK
    p0, p1, p2, p3 = chunk_places(form)

    @device
    def spot(block: Any, t: Any) -> Any:
        return (_ptx.anchored(at(block, uint32(t * uint32(4)))),)

    @device
    def four(places: Any, word: Any, p: Any) -> None:  # a block begins at an even address
        _ptx.store_shared_u16(at(places[0], p), word)
        _ptx.store_shared_u16(at(places[0], p + 2), uint32(word >> uint32(16)))

    @device
    def put(places: Any, words: Any) -> None:
        four(places, words[0], p0)
        if n_chunks > 1:
            four(places, words[1], p1)
        if n_chunks > 2:
            four(places, words[2], p2)
            four(places, words[3], p3)

    return spot, put
