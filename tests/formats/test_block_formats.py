"""Sizes, rates and bit packing of every format."""

from __future__ import annotations

import numpy as np
import pytest

from turbocode.errors import OptionError
from turbocode.formats import FORMAT_NAMES, GROUP_SIZES, block_format
from turbocode.formats.packing import pack_bits, pack_nibbles, unpack_bits, unpack_nibbles
from turbocode.kernels.fwht import rotation_for

SIZES = {  # name: (block bytes, values a block, bits per value) at head_dim 128
    "turbo2": (34, 128, 2.125),
    "turbo3": (50, 128, 3.125),
    "turbo4": (66, 128, 4.125),
    "turbo2_0": (10, 32, 2.5),
    "turbo3_0": (14, 32, 3.5),
    "turbo4_0": (66, 128, 4.125),
    "q8_0": (34, 32, 8.5),
    "q4_0": (18, 32, 4.5),
    "f16": (256, 128, 16.0),
    "turbo1_tcq": (20, 128, 1.25),
    "turbo2_tcq": (36, 128, 2.25),
    "turbo3_tcq": (52, 128, 3.25),
    **{name: (2 + 16 * int(name[7]), 128, 0.125 + int(name[7])) for name in FORMAT_NAMES if name.startswith("trellis")},
}


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_sizes_of_a_group_of_128(name: str) -> None:
    layout = block_format(name, 128)
    size, values, bits = SIZES[name]
    assert (layout.bytes_per_block, layout.values_per_block, layout.bits_per_value) == (size, values, bits)
    assert layout.compression == 16 / bits
    assert layout.bytes_per_group == size * 128 // values
    assert sum(field["count"] * np.dtype(field["dtype"]).itemsize for field in layout.describe()["fields"]) == size  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("head_dim", "group"), [(64, 64), (80, 80), (96, 96), (128, 128), (256, 128), (512, 128), (192, 96)]
)
def test_groups_divide_head_dim_without_padding(head_dim: int, group: int) -> None:
    layout = block_format("turbo3", head_dim)
    assert layout.group_size == group
    assert layout.bytes_per_vector(head_dim) == head_dim // group * (2 + 3 * group // 8)


@pytest.mark.parametrize(
    ("name", "head_dim"), [("turbo3", 72), ("turbo3", 0), ("turbo3_0", 64), ("q8_0", 80), ("turbo3", -128)]
)
def test_head_dims_that_do_not_fit_are_refused(name: str, head_dim: int) -> None:
    with pytest.raises(OptionError, match=f"{name} cannot store head_dim {head_dim}") as error:
        block_format(name, head_dim)
    assert error.value.hint is not None and "without padding" in error.value.hint


def test_unknown_format_suggests_a_near_one() -> None:
    with pytest.raises(OptionError, match="unknown format 'turbo5'") as error:
        block_format("turbo5")
    assert error.value.hint is not None and "turbo" in error.value.hint


def packed_as_digits(indices: np.ndarray, bits: int) -> bytes:
    digits = "".join(format(int(i), f"0{bits}b")[::-1] for i in indices)
    return bytes(int(digits[k : k + 8][::-1], 2) for k in range(0, len(digits), 8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_are_packed_as_a_string_of_digits(bits: int, rng: np.random.Generator) -> None:
    for count in range(0, 1025, 8):
        indices = rng.integers(0, 2**bits, count)
        packed = pack_bits(indices, bits)
        assert packed.tobytes() == packed_as_digits(indices, bits), count
        np.testing.assert_array_equal(unpack_bits(packed, bits), indices)


@pytest.mark.parametrize("bits", range(1, 9))
def test_leading_axes_are_packed_row_by_row(bits: int, rng: np.random.Generator) -> None:
    indices = rng.integers(0, 2**bits, (3, 2, 64))
    packed = pack_bits(indices, bits)
    assert packed.shape == (3, 2, 8 * bits)
    assert packed[1, 1].tobytes() == packed_as_digits(indices[1, 1], bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits), indices)


def test_three_bits_are_a_bijection_on_three_bytes() -> None:
    """Every second and third byte behind sixteen first bytes from 0 to 255."""
    tail = np.indices((256, 256), dtype=np.uint8).reshape(2, -1).T
    for first in range(0, 256, 17):
        packed = np.insert(tail, 0, np.uint8(first), axis=1)
        indices = unpack_bits(packed, 3)
        assert indices.max() <= 7
        np.testing.assert_array_equal(pack_bits(indices, 3), packed)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_unpacking_is_a_bijection_on_bytes(bits: int) -> None:
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    assert len({tuple(row) for row in unpack_bits(every_byte, bits)}) == 256
    np.testing.assert_array_equal(pack_bits(unpack_bits(every_byte, bits), bits), every_byte)


def test_nibbles_hold_value_j_low_and_value_j_plus_half_high(rng: np.random.Generator) -> None:
    quants = rng.integers(0, 16, (7, 32))
    packed = pack_nibbles(quants)
    assert packed.tolist() == [[int(row[j]) + 16 * int(row[j + 16]) for j in range(16)] for row in quants]
    np.testing.assert_array_equal(unpack_nibbles(packed), quants)


def test_every_group_size_has_a_rotation() -> None:
    for group in GROUP_SIZES:
        assert rotation_for(group).group_size == group
