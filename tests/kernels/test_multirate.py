"""The multi-rate trellis: the search against every ring, the stream against strings of digits, bytes, error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.poison import poisoned_outputs

from turbocode.codebooks.multirate_codebook import MultirateCodebook, multirate_codebook
from turbocode.codecs import multirate
from turbocode.errors import DataError, OptionError
from turbocode.formats import MultirateFormat
from turbocode.kernels.multirate import GainScale, Law, MultirateSide, cpu, reference

SCHEDULES = [
    [8, 7, 6, 5, 4, 3, 2, 2, 1, 1, 1, 0, 0, 0, 0, 0],
    [3] * 16,
    [0, 1, 0, 1, 2, 1, 0, 8],
    [1, 1],
    [0, 2, 0],
    [5, 4, 4, 3, 2, 2, 1, 0, 1, 0],
]


def side_of(rates: list[int], rng: np.random.Generator, law: Law = Law.WHITENED) -> MultirateSide:
    sigma = np.exp2(rng.uniform(-3, 3, 8 * len(rates))).astype(np.float32)
    return MultirateSide(MultirateFormat.of(rates), sigma, GainScale(), law, multirate_codebook().tables)


def samples(side: MultirateSide, n: int, rng: np.random.Generator) -> np.ndarray:
    size = np.exp2(rng.uniform(-4, 3, (n, 1)))
    return (rng.standard_normal((n, len(side.sigma))) * side.sigma * size).astype(np.float32)


def small_side(rates: list[int], length: int, rng: np.random.Generator) -> MultirateSide:
    """A side of few states and steps; a schedule's runs of eight are taken away by the caller."""
    side = MultirateSide(
        MultirateFormat.of([1, 1]),
        np.ones(16, np.float32),
        GainScale(),
        Law.WHITENED,
        rng.standard_normal((9, 1 << length)).astype(np.float32),
    )
    object.__setattr__(side, "rates", np.array(rates))
    object.__setattr__(side, "scale", np.exp2(rng.uniform(-1, 1, len(rates))).astype(np.float32))
    return side


@pytest.mark.parametrize(
    ("rates", "length"), [([1, 2, 1, 3, 1], 4), ([3, 1, 1, 2, 1], 4), ([4, 1, 3], 5), ([2, 2, 1, 1], 3)]
)
def test_the_search_finds_the_best_of_all_rings(rates: list[int], length: int, rng: np.random.Generator) -> None:
    side, total = small_side(rates, length, rng), sum(rates)
    ends = np.cumsum(rates)
    streams = np.array(list(itertools.product((0, 1), repeat=total)))
    paths = (streams[:, (ends[:, None] - length + np.arange(length)) % total] << np.arange(length)).sum(axis=-1)
    values = side.tables.astype(np.float64)[np.array(rates), paths]
    weights = np.square(side.scale.astype(np.float64))
    losses = []
    for _ in range(40):
        u = rng.standard_normal((1, len(rates)))
        cost = (weights * np.square(u - values)).sum(axis=1)
        states, found = reference.ring_exhaustive(u, weights, side)
        np.testing.assert_allclose(found, cost.min(), rtol=1e-12)
        np.testing.assert_array_equal(states[0], paths[cost.argmin()])
        states, found = reference.ring(u, weights, side)
        assert (paths == states[0]).all(axis=1).any(), "the two passes must end where they began"
        losses.append(float(found[0] / cost.min()))
    assert min(losses) >= 1 - 1e-12 and np.median(losses) < 1 + 1e-12


@pytest.mark.parametrize("rates", SCHEDULES, ids=str)
@pytest.mark.parametrize("law", Law)
def test_cpu_has_the_bytes_of_the_reference(rates: list[int], law: Law, rng: np.random.Generator) -> None:
    side = side_of(rates, rng, law)
    y = samples(side, 19, rng)
    y[3] = 0
    for searches in (1, 3):
        expected = reference.encode(y, side, searches, np.float32)
        cpu.encode(y[:1], side)
        with poisoned_outputs(0xA5):
            blocks = cpu.encode(y, side, searches)
        np.testing.assert_array_equal(blocks, expected.view(np.uint8).reshape(blocks.shape))
    assert not blocks[3].any()
    np.testing.assert_array_equal(cpu.decode(blocks, side), reference.decode(expected, side, kind=np.float32))
    unscaled = cpu.decode(blocks, side, is_scaled=False)
    np.testing.assert_array_equal(unscaled * side.sigma, cpu.decode(blocks, side))
    same = reference.encode(y, side).view(np.uint8).reshape(blocks.shape) == cpu.encode(y, side)
    assert same.all(axis=1).mean() > 0.9, "float64 finds other paths only where costs are as good as equal"


@pytest.mark.parametrize("rates", SCHEDULES, ids=str)
def test_a_state_is_the_last_ten_bits_written(rates: list[int], rng: np.random.Generator) -> None:
    side = side_of(rates, rng)
    stored = rng.integers(0, 256, (5, side.block_format.bytes_per_block), np.uint8)
    stored[:, 0] = 120
    values = cpu.decode(stored, side, is_scaled=False)
    for block, row in zip(stored, values, strict=True):
        digits = "".join(format(byte, "08b")[::-1] for byte in block[1:])
        written, position = digits, 0
        for channel, rate in enumerate(np.repeat(rates, 8)):
            if not rate:
                assert row[channel] == 0
                continue
            written += digits[position : position + rate]
            position += rate
            state = int(written[-10:][::-1], 2)
            assert row[channel] == side.tables[rate, state] * side.gains.gains[120]


@pytest.mark.parametrize(
    ("rates", "most"), [([4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 0], 1.1), ([8, 7, 6, 5, 4, 4, 3, 2], 1.2)]
)
def test_error_is_that_of_the_rates(rates: list[int], most: float, rng: np.random.Generator) -> None:
    """Squared error over the sum of sigma^2 D(k), where sigma^2 D(k) is alike in all runs as water-filling makes it."""
    nmse = np.array([1.0, *multirate_codebook().nmse])
    each = nmse[np.repeat(rates, 8)]
    sigma = 1 / np.sqrt(each)
    y = (rng.standard_normal((400, len(sigma))) * sigma).astype(np.float32)
    decoded = multirate.decode(multirate.encode(y, sigma, rates), sigma, rates)
    ratio = np.square(decoded - y).sum(axis=1).mean() / (sigma**2 * each).sum()
    assert 0.85 < ratio < most


def test_extreme_vectors_are_coded(rng: np.random.Generator) -> None:
    side = side_of(SCHEDULES[0], rng)
    y = samples(side, 3, rng)
    large, small = y * np.float32(1e9), y * np.float32(1e-9)
    blocks = cpu.encode(np.concatenate((large, small)), side)
    assert (blocks[:3, 0] == 255).all() and not blocks[3:].any()
    assert np.isfinite(cpu.decode(blocks, side)).all()


def test_gains_are_their_definition() -> None:
    scale = GainScale(0.25, 1.0625)
    np.testing.assert_allclose(scale.gains[1:], 0.25 * 1.0625 ** np.arange(255.0), rtol=1e-6)
    assert scale.gains[0] == 0 and (np.diff(scale.gains) > 0).all() and len(scale.boundaries) == 255


@pytest.mark.parametrize(
    ("schedule", "law", "sigma"),
    [
        ([9, 1], "whitened", 1.0),
        ([1], "whitened", 1.0),
        ([0, 1], "whitened", 1.0),
        ([2, 2], "loud", 1.0),
        ([2, 2], "energy", 0.0),
        ([2, 2], "energy", np.nan),
    ],
)
def test_what_cannot_be_is_refused(schedule: list[int], law: str, sigma: float) -> None:
    with pytest.raises(OptionError):
        multirate.multirate_side(np.full(8 * len(schedule), sigma), schedule, law)


def test_the_codebook_is_read_back_and_checked() -> None:
    codebook = multirate_codebook()
    document = codebook.to_json()
    again = MultirateCodebook.from_json(document)
    assert again.sha256 == codebook.sha256 and again.dumps() == codebook.dumps()
    assert list(codebook.nmse) == sorted(codebook.nmse, reverse=True)
    for key, value in (("format", "x"), ("format_version", 2), ("values", [1.0]), ("nmse", [2.0] * 8), ("nmse", None)):
        with pytest.raises(DataError):
            MultirateCodebook.from_json({**document, key: value})
