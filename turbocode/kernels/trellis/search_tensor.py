"""The Viterbi search on the tensor cores, eight groups side by side by two warps: the paths of whole_numbers.search.

A product of matrices adds the distances of 16 states to the costs of their predecessors, for eight groups at once:

    D (16 states x 8 groups) = A (16 x 8: of the states' values) B (8 x 8: of the samples) + C (least costs)

Costs are whole numbers in [2^23, 2^24), so that a float32's lowest bits are the number's own: there the product adds
the number of the branch, and one minimum finds both. Over a cycle of steps the branches of a path gather side by side,
the latest highest, and are then taken off. Bits of positive floats compare as integers, of which sm_90 compares three
at once. A cost beyond 2^24 loses its lowest bit, but is that of no good path.

Rows of tiles are dealt out so that each lane gets whole sets of 2^k predecessors, whose minimum stays in it. Its sets
follow on the same few least costs, as sets do that agree in their lowest L - 2k bits, so that C is read once for all.
Only the least cost of each set is kept from step to step, in two buffers by turns; the branches that come with it, the
path to the best of the set's states, are the decision.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from turbocode.kernels import _ptx, _ptx_matrices
from turbocode.kernels._cuda import at, cuda, device, types
from turbocode.kernels.trellis.tensor_layout import (
    GROUPS,
    SLOTS,
    STATE_PADDING,
    WORD_PLANE,
    can_search,
    layout,
    pair_offset,
    set_offset,
    slot_of,
    turner,
)
from turbocode.kernels.trellis.tensor_operands import COARSE, TensorOperands, tensor_operands
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.trellis.whole_numbers import STEPS_AT_ONCE, approach

BASE = 1 << 23
ALL_ONES, INFINITY_BITS = 0xFFFFFFFF, 0x7F800000

float32, uint32 = types.float32, types.uint32


class TensorSearch(NamedTuple):
    """words : of 32 bits, of a block's shared memory; blocks : that a multiprocessor has room for

    operands : to prepare once, and to put samples
    find(area, thread, held) : set the states of the paths through the samples; all threads, after a barrier
    states_of(area, group) : the address of the uint16 (g,) states of a group
    tile(area) : room for blocks once states are found, until the next search
    """

    words: int
    blocks: int
    operands: TensorOperands
    find: Any
    states_of: Any
    tile: Any


def _stepper(trellis: Trellis, g: int) -> tuple[Any, ...]:
    """The functions step(held, words, place, low, high, own) of STEPS_AT_ONCE steps.

    words (2,) : collect the decisions of an even and an odd group; place : of the lane's part of the sample
    low, high : where least costs are read for tiles of even and odd number; own : where the lane's are written
    """
    k, found = trellis.bits, layout(trellis, g)
    n_own, n_classes, buffer = found.n_own, found.n_classes, found.buffer_bytes
    size, n_tiles, per_class = 1 << k, 1 << (k - 1), found.n_own // found.n_classes
    cycle, tag_bits = found.cycle, found.tag_bits
    clear = ALL_ONES << tag_bits & ALL_ONES
    class_bytes = 64 * n_tiles * SLOTS

    def tile(a: int, j: int, source: int) -> Any:
        """Tile j of the sets of class a, from the least costs of buffer `source`: even and odd are their minima."""
        shift, first = source * buffer + 64 * j + class_bytes * a, 2 * j
        is_high, is_first = j % 2 == 1, j == 0

        @device
        def one(held: Any, b: Any, low: Any, high: Any, even: Any, odd: Any) -> None:
            c = _ptx.load_shared_f32x4(at(high if is_high else low, uint32(shift)))
            for i in range(per_class):
                e = a + n_classes * i
                place = size * e + first
                d = _ptx_matrices.multiply_thin_halves(held[place], held[place + 1], b, c[0], c[1], c[2], c[3])
                if is_first:
                    even[e] = min(_ptx.float_bits(d[0]), _ptx.float_bits(d[2]))
                    odd[e] = min(_ptx.float_bits(d[1]), _ptx.float_bits(d[3]))
                else:
                    even[e] = min(min(even[e], _ptx.float_bits(d[0])), _ptx.float_bits(d[2]))
                    odd[e] = min(min(odd[e], _ptx.float_bits(d[1])), _ptx.float_bits(d[3]))

        return one

    def tiles(number: int, source: int) -> Any:
        """All tiles from `number` on."""
        one = tile(number % n_classes, number // n_classes, source)
        if number == n_classes * n_tiles - 1:
            return one
        rest = tiles(number + 1, source)

        @device
        def several(held: Any, b: Any, low: Any, high: Any, even: Any, odd: Any) -> None:
            one(held, b, low, high, even, odd)
            rest(held, b, low, high, even, odd)

        return several

    @functools.cache
    def step(source: int, is_last: bool) -> Any:
        """From buffer `source` of least costs to the other."""
        find_least, after = tiles(0, source), (1 - source) * buffer

        @device
        def consume(held: Any, words: Any, place: Any, low: Any, high: Any, own: Any) -> None:
            even, odd = cuda.local.array(n_own, uint32), cuda.local.array(n_own, uint32)
            find_least(held, _ptx.load_shared_u32(place), low, high, even, odd)
            for e in range(n_own):
                if is_last:
                    words[0] = _ptx.funnel_shift_right(words[0], even[e], uint32(tag_bits))
                    words[1] = _ptx.funnel_shift_right(words[1], odd[e], uint32(tag_bits))
                    even[e], odd[e] = uint32(even[e] & uint32(clear)), uint32(odd[e] & uint32(clear))
                _ptx.store_shared_u32x2(at(own, uint32(after + WORD_PLANE * e)), even[e], odd[e])
            cuda.syncthreads()

        return consume

    return tuple(step(i % 2, i % cycle == cycle - 1) for i in range(STEPS_AT_ONCE))


def _advancer(trellis: Trellis, g: int) -> Any:
    """advance(held, area, thread, first, count): consume `count` samples of the ring from `first` on."""
    found = layout(trellis, g)
    row_bits, row_bytes = found.row_bits, found.row_bytes
    constants_at, least_at, decisions_at = 4 * GROUPS * g, found.least_at, found.decisions_at
    first_step, second_step, third_step, fourth_step = _stepper(trellis, g)
    _, bases = turner(trellis)

    @device
    def advance(held: Any, area: Any, thread: Any, first: Any, count: Any) -> None:
        slot, t = slot_of(thread), uint32(thread & uint32(3))
        stride, row_stride, origin = uint32(4 * GROUPS), uint32(16 * GROUPS), at(area, uint32(thread & uint32(28)))
        if uint32(t & uint32(1)) != uint32(0):  # columns that are the same for all samples
            stride, row_stride = uint32(4), uint32(0)
            origin = at(area, uint32(uint32(constants_at) + uint32(uint32(t & uint32(2)) * uint32(8))))
        row = at(origin, uint32(uint32(first // uint32(STEPS_AT_ONCE)) * row_stride))
        least = at(area, uint32(uint32(least_at) + uint32(t * uint32(16))))
        own = at(least, set_offset(slot))
        low, high = bases(least, slot)
        decisions = at(area, uint32(decisions_at))
        pairs = at(decisions, uint32(uint32(slot * uint32(4 * GROUPS)) + uint32(t * uint32(8))))
        halves = at(
            decisions, uint32(uint32(slot * uint32(2 * GROUPS)) + uint32(uint32(WORD_PLANE) + uint32(t * uint32(4))))
        )
        words = cuda.local.array(2, uint32)
        words[0], words[1] = uint32(0), uint32(0)
        position, n = uint32(first), uint32(0)
        while n < count:
            first_step(held, words, row, low, high, own)
            place = at(row, stride)
            second_step(held, words, place, low, high, own)
            place = at(place, stride)
            even, odd = words[0], words[1]
            if row_bits == 64:
                _ptx.store_shared_u32x2(pairs, even, odd)
            third_step(held, words, place, low, high, own)
            place = at(place, stride)
            fourth_step(held, words, place, low, high, own)
            if row_bits == 64:
                _ptx.store_shared_u32x2(at(pairs, uint32(WORD_PLANE)), words[0], words[1])
            elif row_bits == 32:
                _ptx.store_shared_u32x2(pairs, words[0], words[1])
            else:  # the upper 24 bits of a word are those of two steps; two such are a word and a half
                _ptx.store_shared_u32x2(
                    pairs,
                    _ptx.select_bytes(even, words[0], uint32(0x5321)),
                    _ptx.select_bytes(odd, words[1], uint32(0x5321)),
                )
                _ptx.store_shared_u32(halves, _ptx.select_bytes(words[0], words[1], uint32(0x7632)))
                halves = at(halves, uint32(row_bytes))
            pairs = at(pairs, uint32(row_bytes))
            row = at(row, row_stride)
            position = uint32(position + uint32(STEPS_AT_ONCE))
            if position == uint32(g):
                row, position = origin, uint32(0)
            n = uint32(n + uint32(STEPS_AT_ONCE))

    return advance


def _tracer(trellis: Trellis, g: int) -> Any:
    """trace(area, group, ending, n_rows, stop, is_kept) -> the set of the state before step 4 stop.

    ending : the set of the state after the last of 4 n_rows steps; states on the way are stored if is_kept
    """
    k, found = trellis.bits, layout(trellis, g)
    tag_bits, row_bits, row_bytes, cycle = found.tag_bits, found.row_bits, found.row_bytes, found.cycle
    decisions_at, set_mask, tag_mask = found.decisions_at, found.n_sets - 1, (1 << tag_bits) - 1
    n_cycles, cycle_bits = STEPS_AT_ONCE // cycle, row_bits * cycle // STEPS_AT_ONCE
    state_mask = (1 << trellis.states_log2) - 1

    @device
    def branches_of(row: Any, group: Any, number: Any, start: Any) -> Any:
        """The branches of the path to the best state of a set, after the cycle whose bits of the row begin at start."""
        slot, e = uint32(number & uint32(SLOTS - 1)), uint32(number >> uint32(4))
        place = at(row, uint32(uint32(slot * uint32(4 * GROUPS)) | uint32(group * uint32(4))))
        word = _ptx.load_shared_u32(at(place, uint32(WORD_PLANE * (start // 32) if row_bits == 64 else 0)))
        shift = uint32(uint32(e * uint32(tag_bits)) + uint32(start % 32))
        if row_bits == 48 and start >= 24:
            half = at(row, uint32(uint32(slot * uint32(2 * GROUPS)) | uint32(group * uint32(2))))
            half = _ptx.load_shared_u16(at(half, uint32(WORD_PLANE)))
            word = uint32(uint32(word >> uint32(24)) | uint32(half << uint32(8)))
            shift = uint32(uint32(e * uint32(tag_bits)) + uint32(start - 24))
        return uint32(uint32(word >> shift) & uint32(tag_mask))

    @device
    def trace(area: Any, group: Any, ending: Any, n_rows: Any, stop: Any, is_kept: Any) -> Any:
        number, n = uint32(ending), uint32(n_rows)
        row = at(area, uint32(uint32(decisions_at) + uint32(n * uint32(row_bytes))))
        states = at(area, uint32(uint32(group * uint32(2 * g + STATE_PADDING)) + uint32(n * uint32(2 * STEPS_AT_ONCE))))
        while n > stop:
            row, states, n = at(row, -row_bytes), at(states, -2 * STEPS_AT_ONCE), uint32(n - uint32(1))
            for i in range(n_cycles):
                h = n_cycles - 1 - i
                branches = branches_of(row, group, number, cycle_bits * h)
                window = uint32(uint32(number << uint32(tag_bits)) | branches)
                if is_kept:
                    for phase in range(cycle):
                        state = uint32(uint32(window >> uint32(k * phase)) & uint32(state_mask))
                        _ptx.store_shared_u16(at(states, uint32(2 * (cycle * h + phase))), state)
                number = uint32(window & uint32(set_mask))
        return number

    return trace


@functools.cache
def tensor_search(trellis: Trellis, g: int) -> TensorSearch:
    """The search of groups of g values, for which `can_search` holds."""
    assert can_search(trellis, g), (trellis, g)
    found, around = layout(trellis, g), approach(trellis, g)
    n_sets, n_own = found.n_sets, found.n_own
    ends_at, least_at, decisions_at = found.ends_at, found.least_at, found.decisions_at
    slack = found.n_steps << (found.tag_bits + COARSE - 1)  # what rounding u^2 may take away from costs
    start_bits = int(np.float32(BASE + slack).view(np.uint32))
    advance, trace = _advancer(trellis, g), _tracer(trellis, g)

    @device
    def end_of(area: Any, group: Any) -> Any:
        """The address of the set in which the path of a group ends, which is the one before its beginning on a ring."""
        return at(area, uint32(uint32(ends_at) + uint32(group * uint32(4))))

    @device
    def begin(area: Any, thread: Any, is_fixed: Any) -> None:
        """Set the least costs before the first step."""
        slot, t = slot_of(thread), uint32(thread & uint32(3))
        own = at(area, uint32(uint32(uint32(least_at) + uint32(t * uint32(16))) + set_offset(slot)))
        for e in range(n_own):
            even, odd = uint32(start_bits), uint32(start_bits)
            if is_fixed:
                number, ends = uint32(slot + uint32(SLOTS * e)), end_of(area, uint32(t * uint32(2)))
                if number != _ptx.load_shared_u32(ends):
                    even = uint32(INFINITY_BITS)
                if number != _ptx.load_shared_u32(at(ends, uint32(4))):
                    odd = uint32(INFINITY_BITS)
            _ptx.store_shared_u32x2(at(own, uint32(WORD_PLANE * e)), even, odd)

    @device
    def find_ends(area: Any, thread: Any) -> None:
        """Let paths end in the set of least cost, the lowest among equal ones; by eight lanes a group."""
        group, part = uint32(thread >> uint32(3)), uint32(thread & uint32(7))
        least = at(area, uint32(uint32(least_at) + pair_offset(group)))
        best, chosen, number = uint32(ALL_ONES), uint32(0), uint32(part)
        while number < uint32(n_sets):
            cost = _ptx.load_shared_u32(at(least, set_offset(number)))
            if cost < best:
                best, chosen = cost, number
            number = uint32(number + uint32(8))
        for i in range(3):
            other = _ptx.shuffle_xor(best, uint32(1 << i))
            other_chosen = _ptx.shuffle_xor(chosen, uint32(1 << i))
            if other < best or (other == best and other_chosen < chosen):
                best, chosen = other, other_chosen
        if part == uint32(0):
            _ptx.store_shared_u32(end_of(area, group), chosen)

    @device
    def find(area: Any, thread: Any, held: Any) -> None:
        begin(area, thread, False)
        cuda.syncthreads()
        if around > 0:
            advance(held, area, thread, uint32((g - around) % g), uint32(2 * around))
            find_ends(area, thread)
            cuda.syncthreads()
            if thread < uint32(GROUPS):
                end, n = end_of(area, thread), uint32(2 * around // STEPS_AT_ONCE)
                seam = trace(area, thread, _ptx.load_shared_u32(end), n, uint32(around // STEPS_AT_ONCE), False)
                _ptx.store_shared_u32(end, seam)
            cuda.syncthreads()
            begin(area, thread, True)
            cuda.syncthreads()
        advance(held, area, thread, uint32(0), uint32(g))
        if around == 0:
            find_ends(area, thread)
        cuda.syncthreads()
        if thread < uint32(GROUPS):
            ending = _ptx.load_shared_u32(end_of(area, thread))
            trace(area, thread, ending, uint32(g // STEPS_AT_ONCE), uint32(0), True)
        cuda.syncthreads()

    @device
    def states_of(area: Any, group: Any) -> Any:
        return at(area, uint32(group * uint32(2 * g + STATE_PADDING)))

    @device
    def tile(area: Any) -> Any:
        return at(area, uint32(decisions_at))

    return TensorSearch(-(-found.n_bytes // 4), found.blocks, tensor_operands(trellis, g), find, states_of, tile)
