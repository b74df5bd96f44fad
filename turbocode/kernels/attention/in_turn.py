"""Device functions one after the other, for loops that must become straight code.

A loop over a local array is only kept in registers if the compiler unrolls it; functions that are closures over their
number leave it no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turbocode.kernels._cuda import device


def in_turn(parts: Sequence[Any]) -> Any:
    """The function that calls all parts, at least one, with its six arguments."""
    if len(parts) == 1:
        return parts[0]
    first, second = in_turn(parts[: len(parts) // 2]), in_turn(parts[len(parts) // 2 :])

    @device
    def both(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> None:
        first(a, b, c, d, e, f)
        second(a, b, c, d, e, f)

    return both


def three_in_turn(parts: Sequence[Any]) -> Any:
    """`in_turn` for functions of three arguments."""
    if len(parts) == 1:
        return parts[0]
    first, second = three_in_turn(parts[: len(parts) // 2]), three_in_turn(parts[len(parts) // 2 :])

    @device
    def both(a: Any, b: Any, c: Any) -> None:
        first(a, b, c)
        second(a, b, c)

    return both
