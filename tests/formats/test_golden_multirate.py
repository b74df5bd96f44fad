"""Frozen multirate blocks: every release must write these bytes and read these values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_within

from turbocode.codecs import multirate_from_calibration

CASES = json.loads((Path(__file__).parent / "golden" / "multirate.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case["rates"])))
def test_blocks_and_values_are_the_frozen_ones(case: dict[str, Any]) -> None:
    d = 8 * len(case["rates"])
    arrays: dict[str, Any] = {"rates": np.array([case["rates"]], np.uint8)}
    arrays["basis"] = np.frombuffer(bytes.fromhex(case["basis"]), np.int8).reshape(1, d, d)
    for name in ("row_scale", "column_scale", "mean", "sigma"):
        arrays[name] = np.frombuffer(bytes.fromhex(case[name]), "<f4")[None]
    codec = multirate_from_calibration(case["about"], arrays, 1, d)
    assert len(case["vectors"]) == 7
    for vector in case["vectors"]:
        values = np.frombuffer(bytes.fromhex(vector["values"]), "<f2")[None]
        block = np.frombuffer(bytes.fromhex(vector["block"]), np.uint8)[None]
        decoded = np.frombuffer(bytes.fromhex(vector["decoded"]), "<f4")[None]
        np.testing.assert_array_equal(codec.encode(values)[0], block)
        assert_within(codec.decode(block), decoded, 2e-5 * np.abs(decoded).max())
