"""The optimal scalar codebook of a symmetric density: centroids that are the means of their own cells.

Max, IRE Trans. Information Theory 6 (1960); Lloyd, IEEE Trans. Information Theory 28 (1982).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from turbocode.codebooks import Codebook
from turbocode.codebooks.codebook import MAX_BITS
from turbocode.errors import OptionError
from turbocode.provenance import provenance
from turbocode.training.densities import Density

Array = NDArray[np.float64]
TOLERANCE = 1e-12  # largest distance of a centroid from the mean of its cell, in standard deviations
_START_ROUNDS = 50  # Lloyd's own iteration, which brings the solver close
_POLISH_ROUNDS = 4


def lloyd_max(density: Density, bits: int) -> Codebook:
    """The codebook of 2**bits centroids with the least squared error on `density`, symmetric, within TOLERANCE.

    Raises OptionError for bits outside 1 to 8.
    """
    if not 1 <= bits <= MAX_BITS:
        raise OptionError(f"{bits} bits are not possible; 1 to {MAX_BITS} are")
    positive = _start(density, 2 ** (bits - 1))
    for _ in range(_START_ROUNDS):
        positive = _cell_means(density, positive)[0]
    solution = optimize.root(lambda c: _cell_means(density, c)[0] - c, positive, tol=1e-14)
    positive = np.asarray(solution.x, dtype=np.float64)
    for _ in range(_POLISH_ROUNDS):
        positive = _cell_means(density, positive)[0]
    means, masses = _cell_means(density, positive)
    if not np.abs(means - positive).max() < TOLERANCE:
        raise ArithmeticError(f"Lloyd-Max for {density.name} at {bits} bits did not converge")
    nmse = 1.0 - 2.0 * float((masses * positive * positive).sum())
    facts = {"trainer": "lloyd-max", "density": density.name, "training_data_sha256": None, "seed": None}
    centroids = np.concatenate((-positive[::-1], positive))
    return Codebook(f"{density.name}-{bits}", centroids, nmse, {**facts, **provenance(density.command(bits))})


def _start(density: Density, count: int) -> Array:
    """Quantiles of the density's 1/3-power companding (Panter and Dite 1951), found on a grid."""
    reach = min(density.support, 8.0)
    edges = np.linspace(0.0, reach, 4097)
    mass = np.maximum(-np.diff(density.tail(edges)), 0.0) ** (1.0 / 3.0)
    share = np.cumsum(mass) / mass.sum()
    return np.interp((np.arange(count) + 0.5) / count, share, edges[1:])


def _cell_means(density: Density, positive: Array) -> tuple[Array, Array]:
    """(means, masses) of the cells around the positive centroids, of which the first cell begins at 0."""
    edges = np.concatenate(([0.0], 0.5 * (positive[:-1] + positive[1:]), [density.support]))
    inner = edges[:-1]
    tail = np.append(density.tail(inner), 0.0)
    moment = np.append(density.tail_moment(inner), 0.0)
    masses = tail[:-1] - tail[1:]
    means = np.divide(moment[:-1] - moment[1:], masses, out=positive.copy(), where=masses > 0)
    return means, masses
