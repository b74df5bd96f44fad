"""Frozen blocks: every release must write these bytes and read these values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_within

from turbocode.codecs import STANDARD_CODECS, make_codec
from turbocode.errors import OptionError
from turbocode.formats import block_format
from turbocode.kernels.scalar import NORM_MODES, reference
from turbocode.kernels.trellis import reference as trellis

TRELLISES = [name for name in STANDARD_CODECS if block_format(name.removesuffix("_rot")).is_trellis]
CASES = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text())


def case_id(case: dict[str, Any]) -> str:
    return f"{case['codec']}-{case['norm']}-{len(case['values']) // 4}"


GROUPED: dict[str, list[dict[str, Any]]] = {}
for _case in CASES:
    GROUPED.setdefault(case_id(_case), []).append(_case)


def unhex(cases: list[dict[str, Any]], key: str, dtype: str) -> Any:
    return np.stack([np.frombuffer(bytes.fromhex(case[key]), dtype=dtype) for case in cases])


def can_store(name: str, group: int) -> bool:
    try:
        return block_format(name.removesuffix("_rot"), group).group_size == group
    except OptionError:
        return False


def test_every_codec_group_size_and_norm_mode_has_golden_blocks() -> None:
    scalar = [name for name in STANDARD_CODECS if name not in TRELLISES]
    wanted = {f"{name}-l2-{g}" for name in scalar for g in (64, 80, 96, 128) if can_store(name, g)}
    wanted |= {f"{name}-mse-{g}" for name in TRELLISES for g in (64, 128) if can_store(name, g)}
    wanted |= {f"turbo3-{mode}-{g}" for mode in NORM_MODES for g in (64, 80, 96, 128)}
    assert set(GROUPED) == wanted
    assert min(len(cases) for cases in GROUPED.values()) >= 8


@pytest.mark.parametrize("cases", GROUPED.values(), ids=GROUPED.keys())
def test_blocks_and_values_are_the_frozen_ones(cases: list[dict[str, Any]]) -> None:
    values = unhex(cases, "values", "<f2")
    blocks, decoded = unhex(cases, "blocks", "u1"), unhex(cases, "decoded", "<f4")
    name, mode = cases[0]["codec"], cases[0]["norm"]
    codec = make_codec(f"{name}:norm={mode}" if name.startswith(("turbo", "trellis")) else name, values.shape[1])
    centroids, boundaries = codec.tables()
    scale = np.abs(decoded).max(axis=1, keepdims=True)
    if name in TRELLISES:
        found = trellis.encode(values, codec.block_format, codec.rotation, centroids, NORM_MODES[mode])
        np.testing.assert_array_equal(found.view(np.uint8).reshape(len(values), -1), blocks)
        np.testing.assert_array_equal(codec.encode(values)[0], blocks)
        again = trellis.decode(found, codec.block_format, codec.rotation, centroids)
        assert_within(again, decoded, 1e-7 * scale)
        assert_within(codec.decode(blocks), decoded, 1e-6 * scale)
        return
    by_reference = reference.encode(values, codec.block_format, codec.rotation, centroids, boundaries, NORM_MODES[mode])
    np.testing.assert_array_equal(by_reference.view(np.uint8).reshape(len(values), -1), blocks)
    np.testing.assert_array_equal(codec.encode(values)[0], blocks)

    stored = blocks.view(codec.block_format.dtype)
    assert_within(reference.decode(stored, codec.block_format, codec.rotation, centroids), decoded, 1e-7 * scale)
    assert_within(codec.decode(blocks), decoded, 1e-6 * scale)
