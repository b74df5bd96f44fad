"""A chain of fitted transforms: one affine map of each KV head, and the arrays that it is stored as.

In files the prefix that a transform was fitted after is part of its name: `mean`, `mean.balance`. So a transform is
never applied to what it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from turbocode.errors import DataError
from turbocode.transforms.aqua import AQUA, Aqua, Predictor
from turbocode.transforms.catalog import TOKEN_TRANSFORMS, TRANSFORMS
from turbocode.transforms.fitted import FittedTransform, Transform
from turbocode.transforms.head_map import HeadMap
from turbocode.transforms.per_token import TokenMap
from turbocode.transforms.statistics import SideStatistics

CONSTANT_TOKENS = 32_768  # constants are counted as if this many tokens shared them


def chain_key(names: Sequence[str]) -> str:
    """The name under which the last of these transforms, fitted after the others, is stored."""
    return ".".join(names)


@dataclass(frozen=True, eq=False)
class FittedChain:
    """steps : in the order in which vectors pass them before they are coded; n_heads, head_dim : what they fit.

    Raises DataError for arrays of the wrong shape.
    """

    steps: tuple[FittedTransform, ...]
    n_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        # Computed now, so that a wrong array is found when the file is read.
        assert self.head_map is not None and (self.token_map is None or self.token_map.n_bytes)
        assert self.predictor is None or self.predictor.bias.size

    @cached_property
    def head_map(self) -> HeadMap:
        """All steps as one map."""
        whole = HeadMap()
        for step in self.steps:
            if step.name not in TRANSFORMS:
                raise DataError(f"transform {step.name!r} is not known to this turbocode")
            whole = whole.then(TRANSFORMS[step.name].head_map(step.arrays, self.n_heads, self.head_dim))
        return whole

    @cached_property
    def token_map(self) -> TokenMap | None:
        """What the last step keeps of every token, None for nothing."""
        early = [step.name for step in self.steps[:-1] if step.name in TOKEN_TRANSFORMS]
        if early:
            raise DataError(f"transform {early[0]} has to be the last")
        last = self.steps[-1] if self.steps else None
        if last is None or last.name not in TOKEN_TRANSFORMS:
            return None
        return TOKEN_TRANSFORMS[last.name].token_map(last.arrays, self.n_heads, self.head_dim)

    @cached_property
    def predictor(self) -> Predictor | None:
        """What the first step takes away that other layers tell, None for nothing."""
        if any(step.name == AQUA for step in self.steps[1:]):
            raise DataError(f"transform {AQUA} has to be the first")
        if not self.steps or self.steps[0].name != AQUA:
            return None
        return Aqua.predictor(self.steps[0].arrays, self.n_heads, self.head_dim)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps)

    @property
    def n_bytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(step.n_bytes for step in self.steps)

    @property
    def bits_per_value(self) -> float:
        """What the arrays add to each value when CONSTANT_TOKENS tokens share them."""
        return 8 * self.n_bytes / (CONSTANT_TOKENS * self.n_heads * self.head_dim)


def fit_chain(transforms: Sequence[Transform], statistics: SideStatistics) -> FittedChain:
    """The transforms fitted one after the other, each on what the ones before it leave."""
    steps: list[FittedTransform] = []
    for transform in transforms:
        fitted = transform.fit(statistics)
        steps.append(fitted)
        change = TRANSFORMS[fitted.name].head_map(fitted.arrays, statistics.n_heads, statistics.head_dim)
        statistics = statistics.mapped(change)
    return FittedChain(tuple(steps), *statistics.mean.shape)


def load_chain(
    names: Sequence[str],
    entry: Callable[[str], tuple[dict[str, Any], dict[str, NDArray[Any]]]],
    n_heads: int,
    head_dim: int,
) -> FittedChain:
    """The chain of these names; `entry` gives (about, arrays) of a key such as `mean.balance`."""
    steps = []
    for n, name in enumerate(names):
        about, arrays = entry(chain_key(names[: n + 1]))
        steps.append(FittedTransform(name, about, arrays))
    return FittedChain(tuple(steps), n_heads, head_dim)
