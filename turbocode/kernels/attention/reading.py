"""How the lanes of the fast attention kernel share and decode blocks, format by format.

`parts` lanes share a block, each takes a run of its values: 4 lanes a key, 8 a value. Multirate blocks: half_run.py.
"""

from __future__ import annotations

import functools
from typing import Any

from turbocode.formats import BlockFormat, Layout, MultirateFormat
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import Reading
from turbocode.kernels.attention.lookup import Lookup, TableKind, is_joint
from turbocode.kernels.attention.rate_tables import HALF_RUN
from turbocode.kernels.attention.run_in_registers import in_registers
from turbocode.kernels.attention.run_of_indices import of_bytes, of_indices, of_planes
from turbocode.kernels.attention.run_of_numbers import of_float16, of_int8
from turbocode.kernels.attention.run_of_states import of_states

uint32 = types.uint32


@functools.cache
def reading(form: BlockFormat, parts: int, lookup: Lookup) -> Reading:
    """The functions for blocks of one format that `parts` lanes share."""
    values = form.values_per_block // parts
    if lookup.kind is TableKind.REGISTERS:
        return in_registers(form, values, parts)
    if form.is_trellis:
        return of_states(form, values, parts, lookup)
    if form.layout is Layout.SPLIT_PLANES:
        return of_planes(form, values, parts, lookup)
    if form.layout is Layout.Q8_0:
        return of_int8(values, parts)
    if form.layout is Layout.FLOAT16:
        return of_float16(values, parts)
    return of_bytes(form, values, parts) if lookup.is_by_byte else of_indices(form, values, parts, lookup)


def values_shared(form: BlockFormat | MultirateFormat, parts: int) -> int:
    """Values of which `parts` lanes take a run each: those of a block; of a multirate block half a run of each."""
    return parts * HALF_RUN if isinstance(form, MultirateFormat) else form.values_per_block


def has_norm(form: BlockFormat) -> bool:
    """Whether a block begins with a float16 factor."""
    return form.layout is not Layout.FLOAT16


@functools.cache
def place_of_key(form: BlockFormat | MultirateFormat, lookup: Lookup) -> Any:
    """The function of a uint32 number j that gives the place in its block of the value that `four` gives j-th."""
    in_stream, in_registers = place_in_block(form), lookup.kind is TableKind.REGISTERS

    @device
    def place(j: Any) -> Any:
        if in_registers:  # number 4 k + 2 h + e of 16 is value k + 8 h + 4 e
            within = uint32(uint32(j >> uint32(2)) & uint32(3))
            half = uint32(uint32(uint32(j >> uint32(1)) & uint32(1)) << uint32(3))
            end = uint32(uint32(j & uint32(1)) << uint32(2))
            return uint32(uint32(j & ~uint32(15)) | uint32(within | uint32(half | end)))
        return in_stream(j)

    return place


@functools.cache
def place_in_block(form: BlockFormat | MultirateFormat) -> Any:
    """The function of a uint32 number j that gives the place in its block of the value that is stored j-th."""
    is_split, half = form.layout is Layout.Q4_0, form.values_per_block // 2

    @device
    def place(j: Any) -> Any:
        if is_split:
            return uint32(uint32(j >> uint32(1)) + uint32(uint32(j & uint32(1)) * uint32(half)))
        return uint32(j)

    return place


def distance_of_two(form: BlockFormat, lookup: Lookup) -> int:
    """How far apart the values are that `two` gives: a byte of two bits of two tokens, alternately, has every other."""
    return 4 if lookup.kind is TableKind.REGISTERS else 2 if lookup.is_by_byte and is_joint(form) else 1
