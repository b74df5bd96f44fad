"""What the layer below tells of keys and values is taken away (AQUA-KV, arXiv 2501.19392, techniques 8.1).

J KV heads, D head_dim, T tokens. Keys are predicted from the decoded keys of all heads of the layer below, values from
the decoded keys of their own layer and the decoded values of the layer below, by linear maps of what RoPE has not
turned yet. What decoding adds is what encoding took away, whatever the prediction is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError
from turbocode.transforms.fitted import Arrays, FittedTransform, half, stored
from turbocode.transforms.head_map import Floats, HeadMap
from turbocode.transforms.rope import rotations, turned
from turbocode.transforms.statistics import SideStatistics

AQUA = "aqua"
KEYS_BELOW, KEYS_HERE, VALUES_BELOW = "keys_below", "keys_here", "values_below"  # what is predicted from, in this order
SOURCES = (KEYS_BELOW, KEYS_HERE, VALUES_BELOW)
READ_FROM = {KEYS_BELOW: (1, "keys"), KEYS_HERE: (0, "keys"), VALUES_BELOW: (1, "values")}  # (layers below, side)
_LARGEST = 127  # of the 8-bit weights


def sources_of(side: str, has_below: bool) -> tuple[str, ...]:
    """What keys or values of a layer are predicted from; has_below : whether there is a layer below."""
    if side == "keys":
        return (KEYS_BELOW,) if has_below else ()
    return (KEYS_HERE, VALUES_BELOW) if has_below else (KEYS_HERE,)


def before_rope(x: NDArray[Any], theta: float, positions: NDArray[Any]) -> NDArray[Any]:
    """Keys (..., T, D) as they were before RoPE; theta 0 for none."""
    if not theta:
        return x
    cosine, sine = (part.astype(x.dtype) for part in rotations(x.shape[-1], theta, positions))
    return turned(x, cosine, -sine)


@dataclass(frozen=True, eq=False)
class Predictor:
    """weights : float32 (J, D, J * D) of each source, by its name in SOURCES; bias : float32 (J, D); theta : of RoPE"""

    weights: Mapping[str, NDArray[np.float32]]
    bias: NDArray[np.float32]
    theta: float

    @property
    def sources(self) -> tuple[str, ...]:
        """What `predict` is to be given, in order."""
        return tuple(self.weights)

    @property
    def _is_of_keys(self) -> bool:
        return KEYS_HERE not in self.weights

    def predict(self, given: Sequence[NDArray[Any]], positions: NDArray[Any]) -> NDArray[np.float32]:
        """Vectors float32 (J, T, D) at `positions` (T,), from the decoded vectors (J, T, D) of each source."""
        found = np.repeat(self.bias[:, None], len(positions), axis=1)
        for (name, weight), vectors in zip(self.weights.items(), given, strict=True):
            x = np.asarray(vectors, np.float32)
            x = x if name == VALUES_BELOW else before_rope(x, self.theta, positions)
            found += x.transpose(1, 0, 2).reshape(len(positions), -1) @ weight.transpose(0, 2, 1)
        if not (self._is_of_keys and self.theta):
            return found
        cosine, sine = (part.astype(np.float32) for part in rotations(found.shape[2], self.theta, positions))
        return np.asarray(turned(found, cosine, sine), np.float32)


def stored_predictor(
    weights: Mapping[str, Floats], target_mean: Floats, source_means: Mapping[str, Floats], theta: float
) -> dict[str, NDArray[Any]]:
    """What is stored of weights (J, D, J * D) by source: 8-bit numbers, a scale a row; the bias makes up for rounding.

    target_mean (J, D), source_means (J * D,) : of what is predicted and of each source, before RoPE
    """
    arrays: dict[str, NDArray[Any]] = {"rope_theta": np.array([[theta]])}
    bias = target_mean.copy()
    for name, weight in weights.items():
        scale = np.maximum(np.abs(weight).max(axis=2), 1e-30).astype(np.float32) / np.float32(_LARGEST)
        rounded = np.clip(np.rint(weight / scale[:, :, None]), -_LARGEST, _LARGEST).astype(np.int8)
        arrays[name], arrays[f"{name}_scale"] = rounded, scale
        bias -= (rounded * scale[:, :, None].astype(np.float64)) @ source_means[name]
    return arrays | {"bias": half(bias)}


@dataclass(frozen=True)
class Aqua:
    """y = x - R (A u + b): u what the layer below (and, for values, the keys of this one) decode to, R the RoPE.

    ridge : noise that u is taken to have, as a share of its variance, which the ridge regression of A then expects
    The paper fits A on coded u, one layer after another; white noise of u does the same to a linear fit as the ridge
    does. The first layer's keys have b alone. Assumes layers that follow each other closely, and RoPE on pairs (i, i +
    D / 2); where a model turns others the prediction is worse, not wrong. Costs a token J * D multiplications a channel
    and source, and layers have to be decoded in order; blocks are decoded before they are attended to. Stores J D^2
    bytes a head and source: over 32,768 tokens J * D / 4096 bits a value for keys and twice that for values, 0.06 and
    0.13 at 2 heads of 128, 0.25 and 0.5 at 8. Has to be the first of a chain. Hurts where little is predicted, for the
    cost, and where an error of the layer below comes through.
    """

    name: ClassVar[str] = AQUA
    ridge: float = 0.02
    measured: Mapping[str, NDArray[Any]] | None = field(default=None, compare=False)
    explained: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 10:
            raise OptionError(f"aqua has ridge {self.ridge}; allowed is above 0 to 10")

    def fit(self, statistics: SideStatistics) -> FittedTransform:
        if self.measured is None:
            raise OptionError("aqua is fitted on two layers of a dump", hint="turbocode calibrate does it")
        about = {} if self.explained is None else {"variance_predicted": self.explained}
        return FittedTransform(self.name, about, dict(self.measured))

    @staticmethod
    def head_map(arrays: Arrays, n_heads: int, head_dim: int) -> HeadMap:
        return HeadMap()

    @staticmethod
    def predictor(arrays: Arrays, n_heads: int, head_dim: int) -> Predictor:
        """What the arrays stand for. Raises DataError."""
        theta = float(stored(arrays, "rope_theta", (1, 1))[0, 0])
        names = tuple(name for name in SOURCES if name in arrays)
        if names not in {sources_of(side, below) for side in ("keys", "values") for below in (False, True)}:
            raise DataError(f"aqua predicts from {', '.join(names)}, which is neither what keys nor what values need")
        if not 0 <= theta < 1e12 or (theta and head_dim % 2):
            raise DataError(f"aqua has RoPE with theta {theta} at head_dim {head_dim}")
        weights = {}
        for name in names:
            scale = stored(arrays, f"{name}_scale", (n_heads, head_dim), is_positive=True)
            whole = stored(arrays, name, (n_heads, head_dim, n_heads * head_dim)) * scale[:, :, None]
            weights[name] = whole.astype(np.float32)
        return Predictor(weights, stored(arrays, "bias", (n_heads, head_dim)).astype(np.float32), theta)
