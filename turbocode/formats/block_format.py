"""A block format: the bytes of one stored block, field by field, and the rates that follow from them.

A *group* is the set of values that share one norm and one rotation; a *block* is the stored unit. Most formats store a
group as one block; the forks' `turbo2_0` and `turbo3_0` store a group of 128 as four blocks that repeat its norm.
Nothing here encodes: the kernels do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

FLOAT16_BITS = 16
FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24  # the smallest positive float16; a norm below it is stored as zero


class Layout(enum.IntEnum):
    """How a block holds its values. Kernels branch on the number, so it is part of their contract."""

    BITSTREAM = 0  # norm, then index j in bits [bits * j, bits * (j + 1)), least significant bit first
    SPLIT_PLANES = 1  # norm, then the low two bits of every index, then the third bit of every index
    Q8_0 = 2  # scale, then int8 multiples of it
    Q4_0 = 3  # scale, then nibbles: value j low and value j + 16 high in byte j, offset by 8
    FLOAT16 = 4  # the values themselves
    TRELLIS_PREFIX = (
        5  # norm, then a stream whose bits [bits * t, bits * t + states_log2) are the state of value t, a byte
    )
    TRELLIS_RING = 6  # norm, then such a stream of bits * n bits that goes on at its beginning (tail-biting)
    MULTIRATE = 7  # a byte of gain, then a ring in which every run of channels has its rate; see multirate_format.py


SCALAR_LAYOUTS = (Layout.BITSTREAM, Layout.SPLIT_PLANES)
TRELLIS_LAYOUTS = (Layout.TRELLIS_PREFIX, Layout.TRELLIS_RING)


@dataclass(frozen=True)
class BlockFormat:
    """One stored block.

    name : the format's public name
    layout : how the block holds its values
    bits : bits of an index (of a stored value for the ggml formats and float16; that a step of a trellis consumes)
    values_per_block : values in one block
    group_size : values that share one norm and one rotation, a multiple of values_per_block
    states_log2 : bits of a state of the trellis, 0 where there is none
    """

    name: str
    layout: Layout
    bits: int
    values_per_block: int
    group_size: int
    states_log2: int = 0

    def __post_init__(self) -> None:
        if self.group_size % self.values_per_block:
            raise ValueError(f"{self.name}: blocks of {self.values_per_block} do not fill a group of {self.group_size}")
        if self.values_per_block * self.bits % 8:
            raise ValueError(f"{self.name}: {self.values_per_block} values of {self.bits} bits do not fill bytes")
        if self.is_trellis and not self.bits < self.states_log2 <= self.values_per_block * self.bits:
            raise ValueError(f"{self.name}: a state of {self.states_log2} bits does not fit {self.bits} bits a value")

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The block as a packed little-endian structured dtype."""
        n = self.values_per_block
        fields: dict[Layout, list[tuple[str, str, tuple[int, ...]]]] = {
            Layout.BITSTREAM: [("norm", "<f2", ()), ("indices", "u1", (n * self.bits // 8,))],
            Layout.SPLIT_PLANES: [("norm", "<f2", ()), ("low_bits", "u1", (n // 4,)), ("high_bits", "u1", (n // 8,))],
            Layout.Q8_0: [("scale", "<f2", ()), ("quants", "i1", (n,))],
            Layout.Q4_0: [("scale", "<f2", ()), ("quants", "u1", (n // 2,))],
            Layout.FLOAT16: [("values", "<f2", (n,))],
            Layout.TRELLIS_PREFIX: [
                ("norm", "<f2", ()),
                ("stream", "u1", (-(-self.stream_bits // 8),)),
                ("pad", "u1", ()),
            ],
            Layout.TRELLIS_RING: [("norm", "<f2", ()), ("stream", "u1", (n * self.bits // 8,))],
        }
        return np.dtype(fields[self.layout])

    @property
    def bytes_per_block(self) -> int:
        return int(self.dtype.itemsize)

    @property
    def blocks_per_group(self) -> int:
        return self.group_size // self.values_per_block

    @property
    def bytes_per_group(self) -> int:
        return self.bytes_per_block * self.blocks_per_group

    @property
    def bits_per_value(self) -> float:
        """Stored bits per value: indices, norms and padding, everything."""
        return 8 * self.bytes_per_block / self.values_per_block

    @property
    def compression(self) -> float:
        """How many times smaller than float16."""
        return FLOAT16_BITS / self.bits_per_value

    @property
    def has_codebook(self) -> bool:
        """Whether indices point into a codebook (else the format does its own arithmetic)."""
        return self.layout in SCALAR_LAYOUTS or self.is_trellis

    @property
    def is_trellis(self) -> bool:
        """Whether a value is decoded from a window of the bits, not from bits of its own."""
        return self.layout in TRELLIS_LAYOUTS

    @property
    def is_tail_biting(self) -> bool:
        """Whether the trellis ends in the state that it starts from, so that the stream is a ring."""
        return self.layout is Layout.TRELLIS_RING

    @property
    def stream_bits(self) -> int:
        """Bits of a trellis's stream: those of its steps and, without tail-biting, those of its first state."""
        prefix = 0 if self.is_tail_biting else self.states_log2 - self.bits
        return prefix + self.values_per_block * self.bits

    def bytes_per_vector(self, head_dim: int) -> int:
        """Stored bytes of one key or value vector of `head_dim` values."""
        return head_dim // self.group_size * self.bytes_per_group

    def describe(self) -> dict[str, object]:
        """The layout as JSON: name, fields with byte offset and shape, and the derived rates."""
        dtype = self.dtype
        assert dtype.fields is not None
        fields = []
        for name in dtype.names or ():
            field, offset = dtype.fields[name][:2]
            count = int(np.prod(field.shape, dtype=int))
            fields.append({"name": name, "offset": int(offset), "dtype": field.base.str, "count": count})
        return {
            "name": self.name,
            "layout": self.layout.name.lower(),
            "bits": self.bits,
            **({"states_log2": self.states_log2} if self.is_trellis else {}),
            "values_per_block": self.values_per_block,
            "group_size": self.group_size,
            "bytes_per_block": self.bytes_per_block,
            "bits_per_value": self.bits_per_value,
            "compression": self.compression,
            "fields": fields,
        }
