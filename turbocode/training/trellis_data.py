"""What trellis codebooks are trained on: groups of norm sqrt(g), drawn from a Gaussian or taken from a dump.

A batch is (u, weights): float32 (n, g), and factors of the squared distances float32 (n, g) or None for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from turbocode.dumps import Dump
from turbocode.errors import DataError, OptionError
from turbocode.formats import group_size_for
from turbocode.kernels.fwht import cpu as fwht
from turbocode.kernels.fwht import rotation_for
from turbocode.training.dump_codebook import HOLDOUT_SHARE, SIDE_LETTERS, query_energy

Batch = tuple[NDArray[np.float32], NDArray[np.float32] | None]
HOLDOUT_GROUPS = 8192
_HOLDOUT_STREAM, _TRAINING_STREAM = 0, 1


class GroupSource(Protocol):
    """Where groups come from; the same arguments give the same groups."""

    @property
    def group_size(self) -> int: ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the codebook's provenance says about it."""
        ...

    @property
    def arguments(self) -> str:
        """The arguments of `turbocode train-codebook` that name it."""
        ...

    def batch(self, seed: int, restart: int, iteration: int, n_groups: int) -> Batch:
        """The groups of one iteration; fewer than n_groups where there are no more."""
        ...

    def holdout(self) -> Batch:
        """Groups that no batch has."""
        ...


def normalised(x: NDArray[Any]) -> NDArray[np.float32]:
    """Groups (n, g) scaled to norm sqrt(g), zero groups left out."""
    x = np.asarray(x, dtype=np.float64)
    square = np.zeros(len(x))
    for column in x.T:  # one after the other: the same sum on every machine
        square += column * column
    kept = square > 0
    return (x[kept] * (math.sqrt(x.shape[1]) / np.sqrt(square[kept]))[:, None]).astype(np.float32)


@dataclass(frozen=True)
class GaussianGroups:
    """Independent N(0, 1) values, every iteration fresh ones."""

    group_size: int = 128

    @property
    def facts(self) -> dict[str, Any]:
        return {"density": "gaussian", "training_data_sha256": None, "group_size": self.group_size}

    @property
    def arguments(self) -> str:
        return f"--density gaussian --dimension {self.group_size}"

    def batch(self, seed: int, restart: int, iteration: int, n_groups: int) -> Batch:
        rng = np.random.default_rng((_TRAINING_STREAM, seed, restart, iteration))
        return normalised(rng.standard_normal((n_groups, self.group_size))), None

    def holdout(self) -> Batch:
        rng = np.random.default_rng((_HOLDOUT_STREAM, self.group_size))
        return normalised(rng.standard_normal((HOLDOUT_GROUPS, self.group_size))), None


@dataclass(frozen=True, eq=False)
class DumpGroups:
    """The rotated groups of some layers and sides of a dump; the last tokens of every sequence are held out."""

    training: Batch
    held_out: Batch
    facts: dict[str, Any]
    arguments: str

    @property
    def group_size(self) -> int:
        return int(self.training[0].shape[1])

    def batch(self, seed: int, restart: int, iteration: int, n_groups: int) -> Batch:
        u, weights = self.training
        if n_groups >= len(u):
            return u, weights
        rng = np.random.default_rng((_TRAINING_STREAM, seed, restart, iteration))
        chosen = np.sort(rng.choice(len(u), n_groups, replace=False))
        return u[chosen], None if weights is None else weights[chosen]

    def holdout(self) -> Batch:
        return self.held_out


def dump_groups(
    dump: Dump,
    *,
    sides: tuple[str, ...],
    layers: tuple[int, ...] | None,
    rotation: str,
    weights: str,
    max_memory: int,
) -> DumpGroups:
    """Groups of a dump that fit into max_memory bytes: all, or evenly spaced tokens.

    sides, layers, rotation : as dump_codebook.TrainingSpec; weights : `none`, or `queries` for E[q_j^2] of the rotated
    queries of the KV head (keys only)
    Raises OptionError (layers that the dump does not have), DataError (no queries, nothing but zeros).
    """
    metadata = dump.metadata
    wanted = tuple(range(metadata.n_layers)) if layers is None else layers
    if any(number >= metadata.n_layers for number in wanted):
        raise OptionError(f"layer {max(wanted)} is not in the dump; layers are 0 to {metadata.n_layers - 1}")
    if weights == "queries" and sides != ("keys",):
        raise OptionError("weights 'queries' weigh keys: only --side k goes with them")
    turn = rotation_for(group_size_for("trellis3", metadata.head_dim), rotation)
    g = turn.group_size
    n_vectors = sum(dump.layers[number].n_seqs * dump.layers[number].n_tokens for number in wanted)
    n_vectors *= metadata.n_kv_heads * len(sides)
    bytes_per_vector = metadata.head_dim * (20 if weights == "queries" else 12)  # values, weights, a search's states
    stride = max(1, -(-n_vectors * bytes_per_vector // max_memory))
    parts: tuple[list[Any], list[Any]] = ([], [])
    factors: tuple[list[Any], list[Any]] = ([], [])
    for side in sides:
        for number in wanted:
            layer = dump.layers[number]
            split = layer.n_tokens - int(layer.n_tokens * HOLDOUT_SHARE)
            for head in range(metadata.n_kv_heads):
                energy = query_energy(dump, layer, head, turn).reshape(-1, g) if weights == "queries" else None
                for seq in range(layer.n_seqs):
                    for part, (start, stop) in enumerate(((0, split), (split, layer.n_tokens))):
                        vectors = layer.read(side, seq, head, start, stop)[::stride].astype(np.float32)
                        rotated = fwht.rotate(np.ascontiguousarray(vectors).reshape(-1, g), turn)
                        kept = np.square(rotated.astype(np.float64)).sum(axis=1) > 0
                        parts[part].append(normalised(rotated))
                        if energy is not None:
                            factors[part].append(np.tile(energy, (len(vectors), 1))[kept].astype(np.float32))
    training, held_out = (np.concatenate(part) for part in parts)
    if not len(training) or not len(held_out):
        raise DataError("no groups to train on: the dump has too few tokens, or only zeros", file=dump.path)
    held_out_step = max(1, len(held_out) // HOLDOUT_GROUPS)
    both = [None, None] if weights == "none" else [np.concatenate(part) for part in factors]
    facts = {
        "training_data_sha256": dump.content_sha256(),
        "sides": list(sides),
        "layers": list(wanted),
        "weights": weights,
        "rotation": rotation,
        "group_size": g,
        "holdout_share": HOLDOUT_SHARE,
        "token_stride": stride,
    }
    return DumpGroups(
        (training, both[0]),
        (held_out[::held_out_step], None if both[1] is None else both[1][::held_out_step]),
        facts,
        f"DUMP --side {SIDE_LETTERS[sides]} --weights {weights} --rotation {rotation}"
        + ("" if layers is None else " --layers " + ",".join(map(str, layers))),
    )
