"""Assertions that a NaN can never pass."""

from __future__ import annotations

from typing import Any

import numpy as np


def relative_error(actual: Any, expected: Any) -> float:
    """L2 norm of the difference over that of expected."""
    expected = np.asarray(expected, dtype=np.float64)
    return float(np.linalg.norm(np.asarray(actual, dtype=np.float64) - expected) / np.linalg.norm(expected))


def assert_within(actual: Any, expected: Any, limit: Any) -> None:
    """Every |actual - expected| is at most `limit`, a number or an array that broadcasts; NaN fails."""
    difference = np.abs(np.asarray(actual, dtype=np.float64) - np.asarray(expected, dtype=np.float64))
    assert difference.size > 0
    assert bool((difference <= limit).all()), f"largest difference {difference.max()} exceeds {np.max(limit)}"
