"""Outputs that hold rubbish before a kernel writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest


@contextmanager
def poisoned_outputs(byte: int) -> Iterator[None]:
    """Fills with `byte` what np.empty and np.empty_like return. Compile the kernels before: Numba knows np.empty."""

    def empty(shape: Any, dtype: Any = float, **options: Any) -> Any:
        out = np.zeros(shape, dtype, **options)
        out.reshape(-1).view(np.uint8)[:] = byte
        return out

    def empty_like(prototype: Any) -> Any:
        return empty(np.shape(prototype), np.asarray(prototype).dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "empty", empty)
        patch.setattr(np, "empty_like", empty_like)
        yield
