"""The block formats by name. One literal table; what depends on head_dim is computed from it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from turbocode.errors import OptionError
from turbocode.formats.block_format import BlockFormat, Layout

# Orders for which kernels/fwht has an orthonormal Hadamard matrix, largest first.
GROUP_SIZES = (128, 96, 80, 64, 48, 40, 32, 16)

FORK_GROUP_SIZE = 128  # the forks rotate 128 values and pad smaller heads; turbocode never pads
GGML_BLOCK_SIZE = 32
DEFAULT_STATES_LOG2 = {
    1: 8,
    2: 8,
    3: 9,
    4: 10,
}  # of trellis1 to trellis4; more states are variants such as trellis3_l12
MAX_STATES_LOG2 = 12


@dataclass(frozen=True)
class _Entry:
    layout: Layout
    bits: int
    values_per_block: int | None  # None: one block holds the whole group
    group_sizes: tuple[int, ...]
    states_log2: int = 0


_ENTRIES = {
    "turbo2": _Entry(Layout.BITSTREAM, 2, None, GROUP_SIZES),
    "turbo3": _Entry(Layout.BITSTREAM, 3, None, GROUP_SIZES),
    "turbo4": _Entry(Layout.BITSTREAM, 4, None, GROUP_SIZES),
    "turbo2_0": _Entry(Layout.BITSTREAM, 2, GGML_BLOCK_SIZE, (FORK_GROUP_SIZE,)),
    "turbo3_0": _Entry(Layout.SPLIT_PLANES, 3, GGML_BLOCK_SIZE, (FORK_GROUP_SIZE,)),
    "turbo4_0": _Entry(Layout.BITSTREAM, 4, None, (FORK_GROUP_SIZE,)),
    "q8_0": _Entry(Layout.Q8_0, 8, GGML_BLOCK_SIZE, tuple(size for size in GROUP_SIZES if size % GGML_BLOCK_SIZE == 0)),
    "q4_0": _Entry(Layout.Q4_0, 4, GGML_BLOCK_SIZE, tuple(size for size in GROUP_SIZES if size % GGML_BLOCK_SIZE == 0)),
    "f16": _Entry(Layout.FLOAT16, 16, None, GROUP_SIZES),
    "turbo1_tcq": _Entry(Layout.TRELLIS_PREFIX, 1, None, (FORK_GROUP_SIZE,), 8),
    "turbo2_tcq": _Entry(Layout.TRELLIS_PREFIX, 2, None, (FORK_GROUP_SIZE,), 8),
    "turbo3_tcq": _Entry(Layout.TRELLIS_PREFIX, 3, None, (FORK_GROUP_SIZE,), 9),
    **{
        f"trellis{bits}" + (f"_l{states_log2}" if states_log2 > default else ""): _Entry(
            Layout.TRELLIS_RING, bits, None, GROUP_SIZES, states_log2
        )
        for bits, default in DEFAULT_STATES_LOG2.items()
        for states_log2 in range(default, MAX_STATES_LOG2 + 1)
    },
}

FORMAT_NAMES = tuple(_ENTRIES)


def group_size_for(name: str, head_dim: int) -> int:
    """The group size that `name` uses for vectors of `head_dim` values: the largest allowed one that divides it.

    Raises OptionError for an unknown name and for a head_dim that no allowed group divides; nothing is ever padded.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, FORMAT_NAMES, n=1)
        raise OptionError(
            f"unknown format {name!r}; formats are {', '.join(FORMAT_NAMES)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    for size in entry.group_sizes:
        if head_dim > 0 and head_dim % size == 0:
            return size
    sizes = ", ".join(map(str, sorted(entry.group_sizes)))
    raise OptionError(
        f"{name} cannot store head_dim {head_dim}: it must be a multiple of one of {sizes}",
        hint="turbo2 to turbo4 and trellis1 to trellis4 store groups of 64, 80, 96 and 128 without padding",
    )


def block_format(name: str, head_dim: int = 128) -> BlockFormat:
    """The format `name` for vectors of `head_dim` values. Raises OptionError as `group_size_for` does."""
    group_size = group_size_for(name, head_dim)
    entry = _ENTRIES[name]
    values_per_block = entry.values_per_block or group_size
    return BlockFormat(name, entry.layout, entry.bits, values_per_block, group_size, entry.states_log2)
