"""A rotation of log2(D) stages of plane rotations whose angles are learnt (ButterflyQuant, arXiv 2509.09679)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from turbocode.codebooks import load_codebook
from turbocode.errors import OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.statistics import SideStatistics
from turbocode.transforms.walsh import power_of_two_in

TRAINING_TOKENS = 1024
LEARNING_RATE = 0.02


def _stages(head_dim: int) -> int:
    return int(math.log2(power_of_two_in(head_dim)))


def _turn(x: Floats, angles: Floats, stage: int, sign: float = 1.0) -> Floats:
    """x (..., D) with pairs at distance 2**stage turned by angles (D / 2,), or back for sign -1."""
    pairs = x.reshape(*x.shape[:-1], -1, 2, 1 << stage)
    c, s = np.cos(angles).reshape(-1, 1 << stage), sign * np.sin(angles).reshape(-1, 1 << stage)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    return np.stack([c * a - s * b, s * a + c * b], axis=-2).reshape(x.shape)


@dataclass(frozen=True)
class Butterfly:
    """y = B_log2(D) ... B_2 B_1 x, each B_s turning pairs of channels at distance 2**(s-1) by angles of their own.

    bits : of the codebook whose error is made small; steps : of Adam, from the angles of a Hadamard rotation
    Error is that of the Gaussian codebook on vectors of norm sqrt(D), the gradient that of the vector with its
    centroids held (straight-through); rotations stay exact whatever is learnt. To be followed by a codec with
    rotation=none. A rotation changes only how Gaussian coordinates are, so that a few per cent are to be had, and only
    where channels are far from it. Assumes that the best angles are the model's. Attention: 2 D log2(D) multiplications
    a query head or output. Stores D log2(D) bytes a head. Hurts where few tokens are learnt by heart.
    """

    name: ClassVar[str] = "butterfly"
    bits: int = 3
    steps: int = 60

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 6 or not 0 <= self.steps <= 10_000:
            raise OptionError(f"butterfly has bits {self.bits} and steps {self.steps}; allowed are 1 to 6, 0 to 10000")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        head_dim = statistics.head_dim
        if not _stages(head_dim):
            raise OptionError(f"butterfly needs an even head_dim; this is {head_dim}")
        tables = load_codebook(f"gaussian-{self.bits}").for_group(1)
        centroids, boundaries = (table.astype(np.float64) for table in tables)
        found, before, after = [], [], []
        for sample in statistics.sample:
            step = -(-len(sample) // TRAINING_TOKENS)
            x = sample[::step].astype(np.float64)
            norms = np.linalg.norm(x, axis=1, keepdims=True)
            x = x[norms[:, 0] > 0] / norms[norms > 0][:, None] * math.sqrt(head_dim)
            angles, errors = self._learn(x, centroids, boundaries)
            found.append(angles)
            before.append(errors[0])
            after.append(min(errors))
        about = {"error_ratio": float(np.mean(after) / np.mean(before))}
        return FittedTransform(self.name, about, {"angles": half(np.stack(found))})

    def _learn(self, x: Floats, centroids: Floats, boundaries: Floats) -> tuple[Floats, list[float]]:
        """(the best angles (stages, D / 2), squared error of each step) on vectors x (N, D)."""
        stages = _stages(x.shape[1])
        angles = np.full((stages, x.shape[1] // 2), math.pi / 4)
        best, errors = angles.copy(), []
        first, second = np.zeros_like(angles), np.zeros_like(angles)
        for step in range(self.steps + 1):
            inputs, y = [], x
            for stage in range(stages):
                inputs.append(y)
                y = _turn(y, angles[stage], stage)
            error = y - centroids[np.searchsorted(boundaries, y)]
            errors.append(float((error * error).mean()))
            if errors[-1] == min(errors):
                best = angles.copy()
            slope, gradient = np.empty_like(angles), 2 * error / len(x)
            for stage in reversed(range(stages)):
                # d/dt of a turn by t is the turn by t + 90 degrees.
                quarter = _turn(inputs[stage], angles[stage] + math.pi / 2, stage)
                product = (gradient * quarter).sum(axis=0).reshape(-1, 2, 1 << stage)
                slope[stage] = product.sum(axis=1).reshape(-1)
                gradient = _turn(gradient, angles[stage], stage, -1.0)
            first += 0.1 * (slope - first)
            second += 0.01 * (slope * slope - second)
            rates = np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-12
            angles = angles - LEARNING_RATE * first / (1 - 0.9 ** (step + 1)) / rates
        return best, errors

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        angles = stored(arrays, "angles", (n_heads, _stages(head_dim), head_dim // 2))
        forward = np.empty((n_heads, head_dim, head_dim))
        for head in range(n_heads):
            rows = np.eye(head_dim)
            for stage in range(_stages(head_dim)):
                rows = _turn(rows, angles[head, stage], stage)
            forward[head] = rows.T
        return HeadMap.linear(forward, forward.transpose(0, 2, 1))
