"""Indices to bits and back, in NumPy: the definition of the stored order. g values a row, any leading axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_bits(indices: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Bytes (..., g * bits / 8) of indices (..., g): index j fills bits [bits * j, bits * (j + 1)), LSB first."""
    digits = (np.asarray(indices, dtype=np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(digits.reshape(*digits.shape[:-2], -1), axis=-1, bitorder="little")


def unpack_bits(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Indices (..., g) of bytes (..., g * bits / 8); the inverse of `pack_bits`."""
    digits = np.unpackbits(packed, axis=-1, bitorder="little").reshape(*packed.shape[:-1], -1, bits)
    indices: NDArray[np.uint8] = np.zeros(digits.shape[:-1], dtype=np.uint8)
    for bit in range(bits):
        np.bitwise_or(indices, digits[..., bit] << np.uint8(bit), out=indices)
    return indices


def pack_nibbles(indices: NDArray[Any]) -> NDArray[np.uint8]:
    """Bytes (..., g / 2) as ggml's q4_0 orders them: value j in the low half of byte j, value j + g / 2 in the high."""
    low, high = np.split(np.asarray(indices, dtype=np.uint8), 2, axis=-1)
    return np.bitwise_or(low, high << np.uint8(4))


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Indices (..., g) of bytes (..., g / 2); the inverse of `pack_nibbles`."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def pack_path(states: NDArray[Any], bits: int, states_log2: int, *, is_ring: bool) -> NDArray[np.uint8]:
    """Bytes (..., n) of the stream of which bits [bits * t, bits * t + states_log2) are state t, of states (..., g).

    is_ring: the last states go on at the stream's beginning, and g * bits bits are stored; else the last state is
    stored whole, and zeros fill the last byte.
    """
    states = np.asarray(states, dtype=np.int64)
    digits = ((states[..., None] >> np.arange(bits)) & 1).reshape(*states.shape[:-1], -1)
    if not is_ring:
        rest = (states[..., -1:] >> np.arange(bits, states_log2)) & 1
        digits = np.concatenate((digits, rest), axis=-1)
    return np.packbits(digits.astype(np.uint8), axis=-1, bitorder="little")


def unpack_path(stream: NDArray[np.uint8], g: int, bits: int, states_log2: int, *, is_ring: bool) -> NDArray[np.int64]:
    """States int64 (..., g) of a stream (..., n); the inverse of `pack_path`."""
    digits = np.unpackbits(stream, axis=-1, bitorder="little").astype(np.int64)
    window = bits * np.arange(g)[:, None] + np.arange(states_log2)
    taken = digits[..., window % (g * bits) if is_ring else window]
    return np.asarray((taken << np.arange(states_log2)).sum(axis=-1))
