"""The codebook of the multi-rate trellis: all rates at once, by the generalised Lloyd algorithm on mixed schedules.

A schedule is what reverse water-filling gives a random spectrum (Cover, Thomas, Elements of Information Theory, 10.3).
Rates 1 to 4 begin with the codebooks of the trellises of one rate. From 5 bits on there are too few states for a random
start: the values are the quantiles of a Gaussian wider than the data (the best density for squared error is pdf^(1/3);
Panter, Dite, Proc. IRE 39, 1951), dealt out to the groups of states in turn; and of neighbouring values of a group each
leads to another group next, so that every continuation is near (Ungerboeck, IEEE Trans. Information Theory 28, 1982).
Rates 7 and 8 keep these values: their rarest states would need more samples than all else together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from turbocode.codebooks.catalog import load_codebook
from turbocode.codebooks.multirate_codebook import MULTIRATE_NAME, MultirateCodebook
from turbocode.formats.multirate_format import MAX_RATE, MULTIRATE_STATES_LOG2, RUN_CHANNELS, MultirateFormat
from turbocode.kernels.multirate import GainScale, Law, MultirateSide, cpu
from turbocode.provenance import provenance

N_STATES = 1 << MULTIRATE_STATES_LOG2
_TRAINING_STREAM, _HOLDOUT_STREAM, _EMPTY_STREAM, _START_STREAM = 1, 0, 2, 3
_HOLDOUT_SCHEDULES, _DECIMALS = 96, 6
_RUNS = 16
_WIDTHS = {5: 1.2, 6: 1.25, 7: 1.4, 8: 1.5}  # standard deviation of the Gaussian whose quantiles are the values
_TRAINED_RATES = 6
_KEPT = 0.8  # share of the earlier rounds' sums that a round goes on with
# Squared error a standard deviation^2 leaves at each rate, as schedules reckon with; the trained figures come close.
EXPECTED_NMSE = np.array([1.0, 0.2715, 0.0735, 0.0192, 0.0049, 0.00135, 0.00037, 0.0001, 0.000027])


@dataclass(frozen=True)
class MultirateTrainingSpec:
    """seed : of schedules and samples; iterations : rounds; schedules, vectors : of a round, each schedule's vectors"""

    seed: int = 1
    iterations: int = 60
    schedules: int = 64
    vectors: int = 96


Tables = NDArray[np.float64]


def water_filling(variances: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Rates int64 (runs,) that sum to `total`, by the greatest gain, of runs with these summed variances."""
    rates = np.zeros(len(variances), np.int64)
    gains = -np.diff(EXPECTED_NMSE, append=EXPECTED_NMSE[-1])  # nothing is gained beyond the last rate
    for _ in range(total):
        rates[np.argmax(variances * gains[rates])] += 1
    return rates


def schedules(rng: np.random.Generator, count: int, tables: Tables) -> list[MultirateSide]:
    """Sides of random spectra, of falling variance as codecs order them; noise per channel is about one."""
    sides = []
    shared = np.zeros((MAX_RATE + 1, N_STATES), np.float32)
    shared[1:] = tables
    for _ in range(count):
        spread, rate = rng.uniform(0.3, 2.5), rng.uniform(1.0, 5.5)
        octaves = np.sort(spread * rng.standard_normal(_RUNS * RUN_CHANNELS))[::-1]
        sigma = np.exp2(octaves)
        rates = water_filling(np.square(sigma).reshape(_RUNS, -1).sum(axis=1), round(rate * _RUNS))
        noise = np.mean(np.square(sigma) * EXPECTED_NMSE[np.repeat(rates, RUN_CHANNELS)])
        sigma = (sigma / math.sqrt(noise)).astype(np.float32)
        sides.append(MultirateSide(MultirateFormat.of(rates), sigma, GainScale(), Law.ENERGY, shared))
    return sides


def initial_tables() -> Tables:
    """Values (8, 1024) to begin with; see above."""
    tables = np.empty((MAX_RATE, N_STATES))
    for k in range(1, 5):
        values = load_codebook(f"trellis{k}-{MULTIRATE_STATES_LOG2}").to_json()["values"]
        tables[k - 1] = values
    rng = np.random.default_rng((_START_STREAM, 0))
    for k, width in _WIDTHS.items():
        quantiles = width * ndtri((np.arange(N_STATES) + 0.5) / N_STATES)
        group_bits = MULTIRATE_STATES_LOG2 - k
        next_bits = min(group_bits, k)  # the newest bits of a branch, which the next group has
        for group in range(1 << group_bits):
            for block in range(1 << (k - next_bits)):
                branch = (rng.permutation(1 << next_bits) << (k - next_bits)) | block
                position = (block << next_bits) + np.arange(1 << next_bits)
                tables[k - 1][group | (branch << group_bits)] = quantiles[(position << group_bits) | group]
    return np.round(tables, _DECIMALS)


def _samples(rng: np.random.Generator, side: MultirateSide, count: int) -> NDArray[np.float32]:
    return rng.standard_normal((count, len(side.rates))).astype(np.float32)


@dataclass
class _Sums:
    """(8, 1024) each, per rate and state: mass, moment and squared error of the samples that it stood for."""

    mass: Tables
    moment: Tables
    wrong: Tables

    @classmethod
    def none(cls) -> _Sums:
        return cls(*(np.zeros((MAX_RATE, N_STATES)) for _ in range(3)))

    def add(self, newer: _Sums) -> None:
        """Add newer sums to a share of these."""
        self.mass = _KEPT * self.mass + newer.mass
        self.moment = _KEPT * self.moment + newer.moment
        self.wrong = _KEPT * self.wrong + newer.wrong

    @classmethod
    def of(cls, sides: list[MultirateSide], batches: list[NDArray[np.float32]], tables: Tables) -> _Sums:
        sums = cls.none()
        for side, u in zip(sides, batches, strict=True):
            states = cpu.ring(u, side)
            weights = np.broadcast_to(np.square(side.scale.astype(np.float64)), u.shape)
            for k in np.unique(side.rates):
                steps = side.rates == k
                state, w = states[:, steps].ravel(), weights[:, steps].ravel()
                x = u[:, steps].ravel().astype(np.float64)
                error = w * np.square(x - tables[k - 1][state])
                for target, terms in ((sums.mass, w), (sums.moment, w * x), (sums.wrong, error)):
                    target[k - 1] += np.bincount(state, terms, minlength=N_STATES)
        return sums

    @property
    def nmse(self) -> NDArray[np.float64]:
        return self.wrong.sum(axis=1) / self.mass.sum(axis=1)


def train_multirate(
    spec: MultirateTrainingSpec | None = None,
    *,
    command: str,
    after_iteration: Callable[[int, NDArray[np.float64]], None] | None = None,
) -> MultirateCodebook:
    """The codebook of the iteration whose held-out error, summed over the rates relative to EXPECTED_NMSE, is least.

    command : what the provenance names as its origin; after_iteration : called with its number and the held-out nmse
    """
    spec = spec or MultirateTrainingSpec()
    tables, sums = initial_tables(), _Sums.none()
    best, best_nmse, least = tables, np.ones(MAX_RATE), math.inf
    for iteration in range(spec.iterations + 1):
        rng = np.random.default_rng((_HOLDOUT_STREAM, 0))
        held = schedules(rng, _HOLDOUT_SCHEDULES, tables)
        nmse = _Sums.of(held, [_samples(rng, side, spec.vectors) for side in held], tables).nmse
        score = float((nmse / EXPECTED_NMSE[1:]).sum())
        if score < least:
            best, best_nmse, least = tables, nmse, score
        if after_iteration:
            after_iteration(iteration, nmse)
        if iteration == spec.iterations:
            break
        rng = np.random.default_rng((_TRAINING_STREAM, spec.seed, iteration))
        sides = schedules(rng, spec.schedules, tables)
        sums.add(_Sums.of(sides, [_samples(rng, side, spec.vectors) for side in sides], tables))
        tables = _centroids(sums, tables, np.random.default_rng((_EMPTY_STREAM, spec.seed, iteration)))
    facts: dict[str, Any] = {
        "trainer": "generalised Lloyd over mixed schedules",
        "density": "gaussian",
        "seed": spec.seed,
        "iterations": spec.iterations,
        "schedules_per_iteration": spec.schedules,
        "vectors_per_schedule": spec.vectors,
        "nmse_is_of": f"{_HOLDOUT_SCHEDULES} held-out schedules",
        **provenance(command),
    }
    return MultirateCodebook(MULTIRATE_NAME, best, tuple(round(float(x), 9) for x in best_nmse), facts)


def _centroids(sums: _Sums, tables: Tables, rng: np.random.Generator) -> Tables:
    """The means of what each state stood for; a state that stood for nothing takes over half of one that costs much."""
    means = np.divide(sums.moment, sums.mass, out=tables.copy(), where=sums.mass > 0)
    means[_TRAINED_RATES:] = tables[_TRAINED_RATES:]
    for row, (mass, wrong) in enumerate(zip(sums.mass[:_TRAINED_RATES], sums.wrong, strict=False)):
        empty = np.flatnonzero(mass == 0)
        if len(empty) and wrong.sum() > 0:
            donors = rng.choice(N_STATES, len(empty), p=wrong / wrong.sum())
            step = 0.1 * math.sqrt(wrong.sum() / mass.sum())
            means[row, empty] = means[row, donors] + step * rng.standard_normal(len(empty))
    return np.asarray(np.round(means, _DECIMALS), dtype=np.float64)
