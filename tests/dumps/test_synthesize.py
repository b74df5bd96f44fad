"""Synthetic dumps have the statistics asked for and depend on their specification alone."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.dumps import SynthesisSpec, open_dump, synthesize
from turbocode.errors import OptionError

SPEC = SynthesisSpec(n_layers=2, n_seqs=2, n_tokens=1500, n_query_heads=4, n_kv_heads=2, head_dim=64, n_rows=16)


def digest(path: Path, spec: SynthesisSpec) -> str:
    synthesize(path, spec, force=True)
    with open_dump(path) as dump:
        return dump.content_sha256()


def test_depends_on_the_specification_alone(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    first = digest(path, SPEC)
    data = path.read_bytes()
    np.random.default_rng().standard_normal(5)
    assert digest(path, SPEC) == first and path.read_bytes() == data
    others = [replace(SPEC, seed=1), replace(SPEC, sinks=2), replace(SPEC, dtype="float32"), replace(SPEC, n_rows=0)]
    assert len({first, *(digest(path, other) for other in others)}) == 5


def test_shape_positions_and_progress(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    told: list[int] = []
    synthesize(path, SPEC, advance=told.append)
    assert sum(told) == SPEC.n_bytes
    with open_dump(path) as dump:
        assert dump.integrity == "checksummed" and dump.metadata.head_dim == 64
        seen = set()
        for layer in dump.layers:
            assert (layer.n_seqs, layer.n_tokens, layer.n_rows) == (2, 1500, 16)
            positions = layer.query_positions()
            assert positions.min() >= 750 and (np.diff(positions, axis=1) >= 0).all()
            for seq in range(2):
                for kind, heads in (("keys", 2), ("values", 2), ("queries", 4)):
                    seen |= {layer.read(kind, seq, head, 0, 8).tobytes() for head in range(heads)}
        assert len(seen) == 2 * 2 * 8


def test_plain_numbers_are_gaussian(tmp_path: Path) -> None:
    synthesize(tmp_path / "dump.h5", SPEC)
    with open_dump(tmp_path / "dump.h5") as dump:
        for kind in ("keys", "values"):
            numbers = dump.layers[1].read(kind, 1, 1).astype(np.float64)
            assert abs(numbers.mean()) < 0.02 and abs(numbers.std() - 1) < 0.02
            kurtosis = np.mean(numbers**4) / np.mean(numbers**2) ** 2
            assert abs(kurtosis - 3) < 0.1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_constant_part_has_its_share_of_energy(tmp_path: Path, share: float) -> None:
    synthesize(tmp_path / "dump.h5", replace(SPEC, constant_share=share))
    with open_dump(tmp_path / "dump.h5") as dump:
        keys = dump.layers[0].read("keys", 0, 0).astype(np.float64)
    found = np.sum(keys.mean(axis=0) ** 2) / np.mean(np.sum(keys**2, axis=1))
    assert found == pytest.approx(share, abs=0.02)


def test_outlier_channels(tmp_path: Path) -> None:
    synthesize(tmp_path / "dump.h5", replace(SPEC, outlier_channels=3, outlier_scale=10.0))
    with open_dump(tmp_path / "dump.h5") as dump:
        spread = dump.layers[0].read("keys", 1, 1).astype(np.float64).std(axis=0)
    assert np.sum(spread > 8) == 3 and np.sum(spread < 1.3) == 61


def test_sinks_draw_attention_and_carry_little(tmp_path: Path) -> None:
    shares = []
    for sinks in (0, 4):
        synthesize(tmp_path / "dump.h5", replace(SPEC, sinks=sinks, sink_scale=3.0), force=True)
        with open_dump(tmp_path / "dump.h5") as dump:
            layer = dump.layers[0]
            keys, values, queries = (
                layer.read(kind, 0, 1).astype(np.float64) for kind in ("keys", "values", "queries")
            )
            logits = queries @ keys.T * dump.metadata.attention_scale
            logits[np.arange(1500) > layer.query_positions()[0][:, None]] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares.append((weights[:, :4].sum(axis=1) / weights.sum(axis=1)).mean())
    assert shares[0] < 0.02 and shares[1] > 10 * shares[0]
    assert np.linalg.norm(values[:4], axis=1).max() < 0.1 * np.linalg.norm(values[4:], axis=1).min()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    spec = SynthesisSpec(n_layers=1, n_tokens=40_000, n_query_heads=1, n_kv_heads=1, dtype="float32")
    tracemalloc.start()
    try:
        synthesize(tmp_path / "dump.h5", spec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert spec.n_bytes > 40e6 and peak < 8e6


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 0},
        {"n_tokens": -1},
        {"head_dim": 1},
        {"n_query_heads": 3},
        {"constant_share": 1.0},
        {"constant_share": float("nan")},
        {"outlier_channels": 65},
        {"outlier_scale": 0.0},
        {"sinks": 1501},
        {"sink_scale": float("inf")},
        {"seed": -1},
        {"dtype": "float64"},
        {"n_rows": 1.5},
    ],
)
def test_specification_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        replace(SPEC, **change)
