"""How the lanes of the fast attention kernel share and decode blocks, format by format.

`parts` lanes share a block, each takes a run of its values: 4 lanes a key, 8 a value. Multirate blocks: half_run.py.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.formats import BlockFormat, Layout, MultirateFormat
from turbocode.kernels._cuda import device, types
from turbocode.kernels.attention.lane_run import Reading
from turbocode.kernels.attention.lookup import Lookup, is_joint
from turbocode.kernels.attention.rate_tables import HALF_RUN
from turbocode.kernels.attention.run_of_indices import of_bytes, of_indices, of_planes
from turbocode.kernels.attention.run_of_numbers import of_float16, of_int8
from turbocode.kernels.attention.run_of_states import of_states

uint32 = types.uint32


@functools.cache
def reading(form: BlockFormat, parts: int, lookup: Lookup) -> Reading:
    """The functions for blocks of one format that `parts` lanes share."""
    values = form.values_per_block // parts
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


def block_order(form: BlockFormat) -> NDArray[np.intp]:
    """The number in its block of the value that comes j-th in the stored bits."""
    j = np.arange(form.values_per_block)
    return j // 2 + j % 2 * (form.values_per_block // 2) if form.layout is Layout.Q4_0 else j


@functools.cache
def place_in_block(form: BlockFormat | MultirateFormat) -> Any:
    """The function that gives `block_order` of a uint32 number."""
    is_split, half = form.layout is Layout.Q4_0, form.values_per_block // 2

    @device
    def place(j: Any) -> Any:
        if is_split:
            return uint32(uint32(j >> uint32(1)) + uint32(uint32(j & uint32(1)) * uint32(half)))
        return uint32(j)

    return place


def is_crossed(form: BlockFormat, lookup: Lookup) -> bool:
    """Whether `two` gives values in crossed order: a byte of two bits of two tokens, alternately, holds every other."""
    return lookup.is_by_byte and is_joint(form)
