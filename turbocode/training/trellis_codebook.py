"""Trellis codebooks by the generalised Lloyd algorithm: search paths, move each value to the mean of what it stood for.

Linde, Buzo, Gray, IEEE Trans. Communications 28 (1980); Stewart, Gray, Linde, IEEE Trans. Communications 30 (1982) for
trellises. The values begin as random numbers: a start from a scalar codebook stays near the scalar codebook's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from turbocode.codebooks import TrellisCodebook, trellis_codebook_name
from turbocode.errors import OptionError
from turbocode.kernels.trellis import Trellis
from turbocode.provenance import provenance
from turbocode.training.trellis_data import Batch, GroupSource

ENDS = ("ring", "free")
_GROUPS_PER_STATE = 16
_MIN_GROUPS, _MAX_GROUPS = 4096, 32768
_RELATIVE_GAIN = 1e-4  # of the held-out NMSE that counts as better
_DECIMALS = 6  # of the values that are kept, in standard deviations
_INITIAL_STREAM = 2
_CONSTRAINT_LENGTHS = 8  # of the approach to a ring's seam: more than encoders take, as training has the time
_NMSE_DIGITS = 9  # that do not depend on the order of a machine's sums


class PathSearch(Protocol):
    """States int16 (n, g) and costs float32 (n,) of the best paths through u (n, g)."""

    def __call__(
        self,
        u: NDArray[np.float32],
        table: NDArray[np.float32],
        trellis: Trellis,
        *,
        weights: NDArray[np.float32] | None = None,
        approach: int | None = None,
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]: ...


@dataclass(frozen=True)
class TrellisTrainingSpec:
    """What to train.

    bits : k, 1 to 4; states_log2 : L, k + 3 to 12; ends : `ring` (tail-biting) or `free` (the forks' formats)
    seed : of the start and the batches; restarts : how many starts, of which the best is kept
    iterations : at most, a start; patience : iterations without a better held-out NMSE after which a start ends
    n_groups : groups an iteration, None for 16 a state within 4,096 to 32,768
    is_monotone : values increase with the oldest bits among the states that share the others
    """

    bits: int
    states_log2: int
    ends: str = "ring"
    seed: int = 1
    restarts: int = 1
    iterations: int = 400
    patience: int = 25
    n_groups: int | None = None
    is_monotone: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 4:
            raise OptionError(f"{self.bits} bits are not possible for a trellis; 1 to 4 are")
        if not self.bits + 3 <= self.states_log2 <= 12:
            raise OptionError(
                f"2**{self.states_log2} states are not possible at {self.bits} bits; --states-log2 "
                f"{self.bits + 3} to 12 are"
            )
        if self.ends not in ENDS:
            raise OptionError(f"unknown ends {self.ends!r}; allowed: {', '.join(ENDS)}")
        if min(self.seed, self.restarts - 1, self.iterations - 1, self.patience - 1, (self.n_groups or 1) - 1) < 0:
            raise OptionError("seed is 0 or more; restarts, iterations, patience and groups are 1 or more")

    @property
    def trellis(self) -> Trellis:
        return Trellis(self.bits, self.states_log2, self.ends == "ring")

    @property
    def groups_per_iteration(self) -> int:
        return self.n_groups or min(_MAX_GROUPS, max(_MIN_GROUPS, _GROUPS_PER_STATE << self.states_log2))

    def command(self, source: GroupSource) -> str:
        """The command that this is, with the options that decide the result."""
        text = (
            f"turbocode train-codebook {source.arguments} "
            f"--trellis --bits {self.bits} --states-log2 {self.states_log2} "
            f"--ends {self.ends} --seed {self.seed} --restarts {self.restarts} --iterations {self.iterations} "
            f"--patience {self.patience} --groups {self.groups_per_iteration}"
        )
        return text + (" --monotone" if self.is_monotone else "")


@dataclass
class TrainingState:
    """Everything that the rest of a training follows from, at the start of an iteration; JSON-able.

    restart, iteration : what comes next; values : of the states, after the iterations so far of this start
    best : values with the least held-out NMSE of all, best_nmse : that; stalled : iterations since this start improved
    start_nmse : the least held-out NMSE of this start
    history : one object an iteration: restart, iteration, nmse (training), nmse_holdout, empty_states
    """

    restart: int = 0
    iteration: int = 0
    values: list[float] | None = None
    best: list[float] | None = None
    best_nmse: float = math.inf
    start_nmse: float = math.inf
    stalled: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The state as JSON; infinities, before the first iteration, as None."""
        return {key: None if value == math.inf else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TrainingState:
        """The inverse of to_json. Raises KeyError, TypeError or ValueError for anything else."""
        state = cls(
            int(document["restart"]),
            int(document["iteration"]),
            None if document["values"] is None else [float(value) for value in document["values"]],
            None if document["best"] is None else [float(value) for value in document["best"]],
            math.inf if document["best_nmse"] is None else float(document["best_nmse"]),
            math.inf if document["start_nmse"] is None else float(document["start_nmse"]),
            int(document["stalled"]),
            [dict(entry) for entry in document["history"]],
        )
        if state.restart < 0 or state.iteration < 0:
            raise ValueError("negative position")
        return state


def train_trellis(
    source: GroupSource,
    spec: TrellisTrainingSpec,
    *,
    viterbi: PathSearch,
    state: TrainingState | None = None,
    after_iteration: Callable[[TrainingState], None] | None = None,
) -> tuple[TrellisCodebook, TrainingState]:
    """(codebook, final state) of the values with the least held-out NMSE over all starts and iterations.

    viterbi : kernels.trellis.cpu.viterbi or cuda.viterbi, which find the same paths
    state : of an interrupted run of the same source and spec, which goes on as if it had not been interrupted
    after_iteration : called with the state after each iteration, to keep or to show it
    """
    state = state or TrainingState()
    trellis, holdout = spec.trellis, source.holdout()
    approach = trellis.approach(source.group_size, _CONSTRAINT_LENGTHS)
    while state.restart < spec.restarts:
        if state.values is None:
            state.values = _initial_values(spec, state.restart).tolist()
            state.start_nmse, state.stalled = math.inf, 0
        values = np.asarray(state.values)
        u, weights = source.batch(spec.seed, state.restart, state.iteration, spec.groups_per_iteration)
        states, costs = viterbi(u, values.astype(np.float32), trellis, weights=weights, approach=approach)
        rng = np.random.default_rng((_INITIAL_STREAM, spec.seed, state.restart, state.iteration + 1))
        values, empty = _centroids(u, weights, states, values, spec, rng)
        values = np.round(values, _DECIMALS)
        nmse = nmse_of(values, holdout, trellis, viterbi)
        state.history.append(
            {
                "restart": state.restart,
                "iteration": state.iteration,
                "nmse": round(float(costs.sum(dtype=np.float64) / _energy(u, weights)), _NMSE_DIGITS),
                "nmse_holdout": nmse,
                "empty_states": empty,
            }
        )
        if nmse < state.best_nmse:
            state.best, state.best_nmse = values.tolist(), nmse
        if nmse < state.start_nmse * (1.0 - _RELATIVE_GAIN):
            state.start_nmse, state.stalled = nmse, 0
        else:
            state.stalled += 1
        state.values, state.iteration = values.tolist(), state.iteration + 1
        if state.stalled >= spec.patience or state.iteration >= spec.iterations:
            state.restart, state.iteration, state.values = state.restart + 1, 0, None
        if after_iteration:
            after_iteration(state)
    assert state.best is not None
    name = trellis_codebook_name(spec.bits, spec.states_log2, is_tail_biting=spec.ends == "ring")
    facts = {
        "trainer": "generalised Lloyd",
        **source.facts,
        "ends": spec.ends,
        "seed": spec.seed,
        "restarts": spec.restarts,
        "iterations": len(state.history),
        "groups_per_iteration": spec.groups_per_iteration,
        "monotone": spec.is_monotone,
        "nmse_is_of": "held-out groups",
        **provenance(spec.command(source)),
    }
    return TrellisCodebook(name, spec.bits, np.asarray(state.best), state.best_nmse, facts), state


def nmse_of(values: NDArray[np.float64], groups: Batch, trellis: Trellis, viterbi: PathSearch) -> float:
    """(Weighted) squared error over energy of groups of norm sqrt(g), searched exactly, at gain 1."""
    u, weights = groups
    approach = trellis.approach(u.shape[1], _CONSTRAINT_LENGTHS)
    _, costs = viterbi(u, values.astype(np.float32), trellis, weights=weights, approach=approach)
    return round(float(costs.sum(dtype=np.float64) / _energy(u, weights)), _NMSE_DIGITS)


def _energy(u: NDArray[np.float32], weights: NDArray[np.float32] | None) -> float:
    squares = np.square(u, dtype=np.float64)
    return float((squares if weights is None else squares * weights).sum())


def _initial_values(spec: TrellisTrainingSpec, restart: int) -> NDArray[np.float64]:
    """Independent N(0, 1 - D) numbers, the distribution that the best reproduction of a Gaussian has."""
    rng = np.random.default_rng((_INITIAL_STREAM, spec.seed, restart, 0))
    values = math.sqrt(1.0 - 4.0**-spec.bits) * rng.standard_normal(1 << spec.states_log2)
    return _monotone(values, np.ones_like(values), spec) if spec.is_monotone else values


def _centroids(
    u: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    states: NDArray[np.int16],
    values: NDArray[np.float64],
    spec: TrellisTrainingSpec,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], int]:
    """(means of what each state stood for, number of states that stood for nothing)."""
    n_states, flat, x = len(values), states.ravel(), u.ravel().astype(np.float64)
    mass = np.ones_like(x) if weights is None else weights.ravel().astype(np.float64)
    total = np.bincount(flat, mass, minlength=n_states)
    moment = np.bincount(flat, mass * x, minlength=n_states)
    error = np.bincount(flat, mass * np.square(x - values[flat]), minlength=n_states)
    is_used = total > 0
    means = np.divide(moment, total, out=values.copy(), where=is_used)
    n_empty = int(n_states - is_used.sum())
    if n_empty:
        # A copy, slightly moved, of a value that costs much: it takes over half of that one's samples.
        donors = rng.choice(n_states, n_empty, p=error / error.sum())
        means[~is_used] = means[donors] + 0.01 * rng.standard_normal(n_empty)
    return (_monotone(means, total.astype(np.float64), spec) if spec.is_monotone else means), n_empty


def _monotone(values: NDArray[np.float64], mass: NDArray[np.float64], spec: TrellisTrainingSpec) -> NDArray[np.float64]:
    """The nearest values that do not decrease with the k oldest bits (pool adjacent violators)."""
    rows = values.reshape(-1, 1 << spec.bits)
    weights = np.maximum(mass, 1e-9).reshape(rows.shape)
    fitted = [optimize.isotonic_regression(row, weights=weight).x for row, weight in zip(rows, weights, strict=True)]
    return np.concatenate(fitted)
