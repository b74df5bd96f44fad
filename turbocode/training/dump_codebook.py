"""Codebooks trained on a dump: the exact optimum on a histogram of its rotated, normalised coordinates.

The first tokens of every sequence train, the rest is held out. Everything is a sum of integers over the values, so the
result depends on the data alone: not on slabs, threads or order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codebooks import Codebook, CodebookSet, ScopedCodebook
from turbocode.codebooks.codebook import MAX_BITS
from turbocode.dumps import Dump, DumpLayer
from turbocode.errors import DataError, OptionError
from turbocode.formats import group_size_for
from turbocode.kernels.fwht import Rotation, cpu, rotation_for
from turbocode.provenance import provenance
from turbocode.training.histogram import CoordinateHistogram

SCOPES = ("pooled", "side", "layer", "head")
WEIGHTS = ("none", "norm", "queries")
HOLDOUT_SHARE = 0.2  # of the tokens of every sequence, its last ones
_BYTES_PER_VALUE = 64  # float32 and float64 copies, bins and weights of a slab
_MAX_SLAB_TOKENS = 1 << 14
_QUERY_ROWS = 1024  # summed at a time; fixed, so that the sums do not depend on the memory allowed
_WEIGHT_BITS = 20  # weights are scaled so that the heaviest vector weighs about 2**20
SIDE_LETTERS = {("keys",): "k", ("values",): "v", ("keys", "values"): "kv"}


@dataclass(frozen=True)
class TrainingSpec:
    """What to train.

    bits : 1 to 8; sides : of `keys`, `values`; per : one codebook for all (`pooled`), per `side`, per side and `layer`,
    or per side, layer and KV `head`; weights : `none`, `norm` (|x|^2 of the group) or `queries` (E[q_j^2], keys only)
    layers : numbers of the layers to use, None for all; rotation : as the codec that will use the codebook
    """

    bits: int
    sides: tuple[str, ...] = ("keys", "values")
    per: str = "pooled"
    weights: str = "none"
    layers: tuple[int, ...] | None = None
    rotation: str = "signed"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise OptionError(f"{self.bits} bits are not possible; 1 to {MAX_BITS} are")
        if self.per not in SCOPES:
            raise OptionError(f"unknown scope {self.per!r}; allowed: {', '.join(SCOPES)}")
        if self.weights not in WEIGHTS:
            raise OptionError(f"unknown weights {self.weights!r}; allowed: {', '.join(WEIGHTS)}")
        if not self.sides or self.sides not in SIDE_LETTERS:
            raise OptionError(f"sides {self.sides} are not keys, values or both")
        if self.layers is not None and (
            list(self.layers) != sorted(set(self.layers)) or min(self.layers, default=-1) < 0
        ):
            raise OptionError(f"layers {self.layers} are not layer numbers in ascending order")
        if self.weights == "queries" and self.sides != ("keys",):
            raise OptionError("weights 'queries' weigh keys: only --side k goes with them")

    @property
    def command(self) -> str:
        """The command that this is."""
        layers = "" if self.layers is None else " --layers " + ",".join(map(str, self.layers))
        return (
            f"turbocode train-codebook DUMP --bits {self.bits} --side {SIDE_LETTERS[self.sides]} --per {self.per} "
            f"--weights {self.weights} --rotation {self.rotation}{layers}"
        )


@dataclass(frozen=True, eq=False)
class TrainedCodebook:
    """A codebook with its scope and the histograms (training, held-out) that it came from and is judged by."""

    scoped: ScopedCodebook
    training: CoordinateHistogram
    holdout: CoordinateHistogram
    is_weighted: bool

    @property
    def codebook(self) -> Codebook:
        assert isinstance(self.scoped.codebook, Codebook)
        return self.scoped.codebook

    def holdout_nmse(self, codebook: Codebook | None = None) -> float | None:
        """Held-out NMSE of this codebook, or of another one on the same values; None if nothing was held out."""
        return _nmse(self.holdout, codebook or self.codebook, self.is_weighted)


def _nmse(histogram: CoordinateHistogram, codebook: Codebook, is_weighted: bool) -> float | None:
    return histogram.nmse(codebook, is_weighted=is_weighted) if histogram.masses(is_weighted).any() else None


def codebook_set(trained: list[TrainedCodebook]) -> CodebookSet:
    """The set that a recipe's `codebook=FILE` reads."""
    return CodebookSet(tuple(entry.scoped for entry in trained))


def train_from_dump(
    dump: Dump, spec: TrainingSpec, *, max_memory: int, advance: Callable[[int], None] | None = None
) -> list[TrainedCodebook]:
    """Codebooks for `dump` as `spec` asks, in the order side, layer, head.

    advance : called with the number of vectors just read
    Raises OptionError (layers the dump does not have), DataError (no queries to weigh with, too few distinct values).
    """
    n_layers = dump.metadata.n_layers
    wanted = range(n_layers) if spec.layers is None else spec.layers
    if any(number >= n_layers for number in wanted):
        raise OptionError(f"layers {max(wanted)} is not in the dump; it has layers 0 to {n_layers - 1}")
    group_size = group_size_for("turbo4", dump.metadata.head_dim)
    rotation = rotation_for(group_size, spec.rotation)
    facts = {
        "trainer": "exact 1-D k-means on a histogram",
        "training_data_sha256": dump.content_sha256(),
        "layers": list(wanted),
        "weights": spec.weights,
        "rotation": spec.rotation,
        "group_size": group_size,
        "holdout_share": HOLDOUT_SHARE,
        "seed": None,
        **provenance(spec.command),
    }
    scale = _weight_scale(dump, spec, wanted, max_memory) if spec.weights == "norm" else 1.0
    trained: list[TrainedCodebook] = []
    scope: tuple[str | None, str | None, int | None] | None = None
    histograms = (CoordinateHistogram(group_size), CoordinateHistogram(group_size))
    for side in spec.sides:
        for number in wanted:
            layer = dump.layers[number]
            for head in range(dump.metadata.n_kv_heads):
                due = _scope(spec.per, layer.name, side, head)
                if scope is not None and due != scope:
                    trained.append(_solve(spec, scope, histograms, facts))
                    histograms = (CoordinateHistogram(group_size), CoordinateHistogram(group_size))
                scope = due
                _count(dump, layer, side, head, spec, rotation, histograms, max_memory, scale, advance)
    assert scope is not None
    trained.append(_solve(spec, scope, histograms, facts))
    return trained


def _scope(per: str, layer: str, side: str, head: int) -> tuple[str | None, str | None, int | None]:
    return (
        layer if per in ("layer", "head") else None,
        None if per == "pooled" else side,
        head if per == "head" else None,
    )


def _solve(
    spec: TrainingSpec,
    scope: tuple[str | None, str | None, int | None],
    histograms: tuple[CoordinateHistogram, CoordinateHistogram],
    facts: dict[str, Any],
) -> TrainedCodebook:
    layer, side, head = scope
    training, holdout = histograms
    is_weighted = spec.weights != "none"
    centroids = training.optimal_centroids(spec.bits, is_weighted=is_weighted)
    sides = spec.sides if side is None else (side,)
    where = [layer, sides[0] if len(sides) == 1 else None, None if head is None else f"head{head}"]
    name = "-".join(["trained", *(part for part in where if part), str(spec.bits)])
    draft = Codebook(name, centroids, 1.0)
    figures = {
        "sides": list(sides),
        "layer": layer,
        "head": head,
        "n_values": int(training.counts.sum()),
        "n_values_holdout": int(holdout.counts.sum()),
        "zero_groups": training.zero_groups + holdout.zero_groups,
        "nmse_holdout": _nmse(holdout, draft, is_weighted),
    }
    nmse = training.nmse(draft, is_weighted=is_weighted)
    codebook = Codebook(name, centroids, nmse, {**facts, **figures})
    return TrainedCodebook(ScopedCodebook(codebook, layer, side, head), training, holdout, is_weighted)


def _count(
    dump: Dump,
    layer: DumpLayer,
    side: str,
    head: int,
    spec: TrainingSpec,
    rotation: Rotation,
    histograms: tuple[CoordinateHistogram, CoordinateHistogram],
    max_memory: int,
    scale: float,
    advance: Callable[[int], None] | None,
) -> None:
    training, holdout = histograms
    g, slab = rotation.group_size, _slab_tokens(dump, max_memory)
    split = layer.n_tokens - int(layer.n_tokens * HOLDOUT_SHARE)
    per_coordinate = query_energy(dump, layer, head, rotation) if spec.weights == "queries" else None
    for seq in range(layer.n_seqs):
        for histogram, first, last in ((training, 0, split), (holdout, split, layer.n_tokens)):
            for start, stop in _ranges(first, last, slab):
                vectors = layer.read(side, seq, head, start, stop)
                rotated = cpu.rotate(vectors.astype(np.float32).reshape(-1, g), rotation)
                weights: NDArray[Any] | None = None
                if spec.weights == "norm":
                    weights = scale * (rotated.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
                elif per_coordinate is not None:
                    weights = np.tile(per_coordinate.reshape(-1, g), (stop - start, 1))
                histogram.add(rotated, weights)
                if advance:
                    advance(stop - start)


def _slab_tokens(dump: Dump, max_memory: int) -> int:
    slab = min(_MAX_SLAB_TOKENS, max_memory // (dump.metadata.head_dim * _BYTES_PER_VALUE))
    if slab < 1:
        raise OptionError(f"{max_memory} bytes of memory do not hold one vector of {dump.metadata.head_dim} values")
    return slab


def _weight_scale(dump: Dump, spec: TrainingSpec, layers: Sequence[int], max_memory: int) -> float:
    """The power of two that brings the largest |x|^2 near 2**_WEIGHT_BITS, so that units of weight are fine enough."""
    largest = 0.0
    slab = _slab_tokens(dump, max_memory)
    for side in spec.sides:
        for number in layers:
            layer = dump.layers[number]
            for seq in range(layer.n_seqs):
                for head in range(dump.metadata.n_kv_heads):
                    for start, stop in _ranges(0, layer.n_tokens, slab):
                        vectors = layer.read(side, seq, head, start, stop).astype(np.float64)
                        largest = max(largest, float(np.square(vectors).sum(axis=1).max()))
    return 2.0 ** (_WEIGHT_BITS - math.ceil(math.log2(largest))) if largest > 0 else 1.0


def _ranges(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, size):
        yield start, min(last, start + size)


def query_energy(dump: Dump, layer: DumpLayer, head: int, rotation: Rotation) -> NDArray[np.float64]:
    """E[q_j^2] (head_dim,) of the rotated queries that read a KV head, relative to its mean over j."""
    if not layer.n_rows:
        raise DataError("weights 'queries' need queries, and the dump has none", file=dump.path)
    q_per_kv = dump.metadata.n_query_heads // dump.metadata.n_kv_heads
    energy = np.zeros(dump.metadata.head_dim)
    for query_head in range(head * q_per_kv, (head + 1) * q_per_kv):
        for seq in range(layer.n_seqs):
            for start, stop in _ranges(0, layer.n_rows, _QUERY_ROWS):
                queries = layer.read("queries", seq, query_head, start, stop).astype(np.float32)
                rotated = cpu.rotate(queries.reshape(-1, rotation.group_size), rotation).reshape(queries.shape)
                energy += (rotated.astype(np.float64) ** 2).sum(axis=0)
    mean = energy.mean()
    if mean == 0:
        raise DataError(f"the queries of layer {layer.name} that read KV head {head} are all zero", file=dump.path)
    return energy / mean
