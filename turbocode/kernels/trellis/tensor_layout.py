"""Where search_tensor.py keeps what in the shared memory of a block, and which lane has which states.

Of eight groups of g samples: words of samples (g, 8), a row of constants, a row of the sets in which paths end; two
buffers of least costs, sets in pairs: (set / 2, group / 2, set % 2, group % 2); decisions, a row for four steps: words
(slot, group), two of them for 64 bits, one and a plane of halves for 48. States of paths (8, g) take the place of
the samples once these are used up; operands are made where costs and decisions lie later.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from turbocode.kernels._cuda import at, device, types
from turbocode.kernels.trellis.trellis import Trellis
from turbocode.kernels.trellis.whole_numbers import STEPS_AT_ONCE, approach

GROUPS, THREADS = 8, 64  # of a block
SLOTS = 16  # of a tile's rows, eight a warp: slot s has the sets s + 16 e
CYCLES = {1: 4, 2: 2, 3: 1, 4: 1}  # by k: steps after which decisions are taken off the costs, k bits a step
WORD_PLANE = 4 * SLOTS * GROUPS  # bytes of a word for each slot and group
STATE_PADDING = 16  # bytes between the states of groups, so that they lie in different banks
MAX_SHARED = 45 * 1024
MULTIPROCESSOR_SHARED, RESERVED_SHARED = 228 * 1024, 1024  # bytes of an H100, and of these what a block loses
MAX_BLOCKS = 8  # of a multiprocessor: 128 registers a thread
MAX_GROUP = 128
uint32 = types.uint32


class Layout(NamedTuple):
    """n_sets : of predecessors; n_own : of a slot; n_classes : of a slot's sets that follow on different ones

    cycle : steps between decisions; tag_bits : decisions of a set and cycle; row_bits : of a slot and four steps
    n_steps : at most; others : bytes
    """

    n_sets: int
    n_own: int
    n_classes: int
    cycle: int
    tag_bits: int
    row_bits: int
    n_steps: int
    ends_at: int
    least_at: int
    decisions_at: int
    n_bytes: int

    @property
    def buffer_bytes(self) -> int:
        """Of one buffer of least costs."""
        return 4 * GROUPS * self.n_sets

    @property
    def row_bytes(self) -> int:
        """Of the decisions of four steps."""
        return self.row_bits * WORD_PLANE // 32

    @property
    def blocks(self) -> int:
        """That a multiprocessor has shared memory for, and registers."""
        return min(MAX_BLOCKS, MULTIPROCESSOR_SHARED // (self.n_bytes + RESERVED_SHARED))


def layout(trellis: Trellis, g: int) -> Layout:
    """The layout for groups of g values, whether or not it fits."""
    k, length = trellis.bits, trellis.states_log2
    n_sets = 1 << (length - k)
    n_own, n_steps, cycle = n_sets // SLOTS, max(g, 2 * approach(trellis, g)), CYCLES[k]
    row_bits = STEPS_AT_ONCE * k * n_own
    ends_at = 4 * GROUPS * (g + 1)
    least_at = ends_at + 4 * GROUPS
    decisions_at = least_at + 2 * 4 * GROUPS * n_sets
    n_decisions = n_steps // STEPS_AT_ONCE * row_bits * WORD_PLANE // 32
    n_operands = 16 << length
    n_bytes = max(decisions_at + n_decisions, least_at + n_operands)
    n_classes = max(1, n_sets >> k >> 4)
    return Layout(
        n_sets, n_own, n_classes, cycle, k * cycle, row_bits, n_steps, ends_at, least_at, decisions_at, n_bytes
    )


def can_search(trellis: Trellis, g: int) -> bool:
    """Whether search_tensor.py knows the trellis and groups of g values.

    Of the formats' trellises those with L = 8 (k = 1, 2), 9 (k = 2, 3) and 10 (k = 4); g is a multiple of 16 up to 128.
    Others have more states than a block has shared memory for.
    """
    if trellis.states_log2 < 2 * trellis.bits or g % 16 or g > MAX_GROUP:
        return False
    found = layout(trellis, g)
    is_whole = found.row_bits in (32, 48) or (found.row_bits == 64 and found.cycle <= 2)
    return is_whole and found.n_bytes <= MAX_SHARED


@device
def slot_of(thread: Any) -> Any:
    """The slot of a thread."""
    lane = uint32(thread & uint32(31))
    return uint32(uint32(lane >> uint32(2)) | uint32(uint32(thread >> uint32(5)) << uint32(3)))


@device
def set_offset(number: Any) -> Any:
    """Bytes from set 0 to the set in a buffer of least costs."""
    return uint32(uint32(number * uint32(32)) - uint32(uint32(number & uint32(1)) * uint32(24)))


@device
def pair_offset(group: Any) -> Any:
    """Bytes from group 0 to the group in a buffer of least costs."""
    return uint32(uint32(uint32(group >> uint32(1)) * uint32(16)) + uint32(uint32(group & uint32(1)) * uint32(4)))


@functools.cache
def turner(trellis: Trellis) -> tuple[Any, Any]:
    """(turned, bases): turned(slot) says 1 where the tiles of sets come in pairs the other way round.

    bases(least, slot) -> where to read the tiles of even and of odd number from. Neighbouring slots follow on
    neighbouring classes, which lie in the same banks; so they read the halves of 128 bytes in opposite order.
    """
    n_classes = min(SLOTS, 1 << (trellis.states_log2 - 2 * trellis.bits))
    n_tiles = 1 << (trellis.bits - 1)
    is_turned = n_tiles > 1 and n_classes > 1

    @device
    def turned(slot: Any) -> Any:
        return uint32(slot & uint32(1)) if is_turned else uint32(0)

    @device
    def bases(least: Any, slot: Any) -> Any:
        first = at(least, uint32(uint32(slot & uint32(n_classes - 1)) * uint32(64 * n_tiles)))
        if turned(slot) != uint32(0):
            return at(first, 64), at(first, -64)
        return first, first

    return turned, bases
