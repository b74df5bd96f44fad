"""What compares and times attention on a GPU, at tiny sizes in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs.host_attention import HostAttention
from turbocode.conversion import plan_quantize
from turbocode.dumps import open_dump
from turbocode.dumps.synthesize import SynthesisSpec, synthesize
from turbocode.evaluation import cold_timing, gpu_attention_benchmark
from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.attention_warmup import jobs_for, run_job
from turbocode.kernels.attention import cuda
from turbocode.kernels.attention.skipping import Skipping
from turbocode.policies import Recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SHAPES", (cuda.Shape(1, 1, 2),))


@pytest.mark.parametrize("is_transformed", [False, True])
def test_a_dump_compares_as_on_the_cpu(is_transformed: bool, tmp_path: Path) -> None:
    """Behind transforms too, whose maps the host does: tiles lack what the keys' mean adds, and are merged."""
    shape = {"n_layers": 1, "n_query_heads": 2, "n_kv_heads": 1, "head_dim": 64, "n_rows": 2, "constant_share": 0.5}
    synthesize(tmp_path / "d.h5", SynthesisSpec(n_tokens=70, **shape))
    fields = {}
    if is_transformed:
        synthesize(tmp_path / "longer.h5", SynthesisSpec(n_tokens=140, **shape))
        with open_dump(tmp_path / "longer.h5") as longer:
            chains = {"keys": [parse_transforms("mean+balance_diagonal")], "values": [parse_transforms("mean")]}
            calibrate_dump(longer, tmp_path / "c.h5", chains)
        transforms = {"k": ["mean", "balance_diagonal"], "v": ["mean"]}
        fields = {"calibration": str(tmp_path / "c.h5"), "transforms": transforms}
    with open_dump(tmp_path / "d.h5") as dump:
        source = EncodedNow(plan_quantize(dump, Recipe(k="turbo3", v="turbo4", **fields)))
        on_cpu = compare_attention(dump, source, max_memory=1 << 30)["total"]
        # In tiles of 64 tokens, whose results are merged.
        on_gpu = compare_attention(dump, source, max_memory=300_000, attend=HostAttention(0))["total"]
    assert on_cpu["kernel_error"] < 1e-5 < on_gpu["kernel_error"] < 1e-3
    assert on_gpu["output_error"] == pytest.approx(on_cpu["output_error"], abs=1e-3)
    assert on_gpu["kl_mean"] == pytest.approx(on_cpu["kl_mean"], rel=1e-9)


def test_the_benchmark_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_timing, "MIN_CALLS", 1)
    monkeypatch.setattr(gpu_attention_benchmark, "host_seconds", lambda work, wait, n: 1e-5)
    shapes = {"tiny": AttentionShape(2, 24, 2, 1, 64), "none": AttentionShape(1, 1 << 40, 1, 1, 64)}
    done: list[int] = []
    kept: list[int] = []
    result = gpu_attention_benchmark.benchmark_attention_on_gpu(
        0,
        shapes,
        [("turbo3", "turbo2"), ("turbo2_0", "turbo2_0")],
        repeats=1,
        advance=done.append,
        keep=lambda found: kept.append(len(found["shapes"])),
        copy_bytes=4096,
        skipping=Skipping(1e-6, 1e-7),
    )
    tiny, none = result["shapes"]
    assert "MiB of GPU memory" in none["problem"] and none["codecs"] == []
    row, unfit = tiny["codecs"]
    assert row["relative_error"] < 1e-3 and row["is_within_bound"] and row["plain_error"] < 1e-3
    assert row["default_seconds"] > 0 and row["default_error"] < 1e-3
    assert row["bytes_allow"] == pytest.approx(16 / 2.75)
    assert row["n_bytes"] == 2 * 24 * (26 + 18) + 2 * 2 * (2 * 2 * 64 + 4)
    assert row["gb_per_s"] == pytest.approx(row["n_bytes"] / row["seconds"] / 1e9)
    assert min(row[name] for name in ("seconds", "plain_seconds", "decode_seconds", "share_of_copy")) > 0
    assert "head_dim 64" in unfit["problem"]
    assert all(row["problem"] for row in (*tiny["float16"], *tiny["rivals"])) and tiny["best_float16"] is None
    assert (sum(done), kept) == (4, [1, 2])


def test_what_is_compiled_ahead_runs() -> None:
    shapes = [
        AttentionShape(1, 16 * 4096, 12, 2, 128),
        AttentionShape(4, 33, 8, 1, 64),
        AttentionShape(1, 33, 1, 1, 64),
    ]
    jobs = jobs_for(shapes, [("turbo3", "turbo3"), ("turbo3_tcq", "turbo3_tcq")], ["turbo3"])
    kinds: dict[Any, list[Any]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append((job.k, job.shape.tokens, job.shape.head_dim))
    assert kinds["attend"] == [("turbo3", 64, 128), ("turbo3_tcq", 64, 128), ("turbo3", 65, 64)]
    assert kinds["plain"] == [("turbo3", 64, 128), ("turbo3", 65, 64)]
    assert len(kinds["decode"]) == len(kinds["encode"]) == 3
    small = AttentionShape(1, 16, 1, 1, 64)
    for kind in ("attend", "plain", "decode", "encode"):
        run_job(next(job for job in jobs if job.kind == kind)._replace(shape=small, k="turbo2", v="turbo2"), 0)


def test_exact_attention_in_tiles(rng: np.random.Generator) -> None:
    from turbocode.evaluation.gpu_attention_error import exact_output
    from turbocode.kernels.attention import reference

    q, k, v = (rng.standard_normal((n, 16)) * 2 for n in (3, 50, 50))
    expected, _ = reference.decode_attention(
        q[None, :, None], k[None, None], v[None, None], np.array([[49]]), scale=0.5
    )
    found = exact_output(np, q, lambda a, b: k[a:b], lambda a, b: v[a:b], 50, 0.5, tile=13)
    np.testing.assert_allclose(found, expected[0, :, 0], rtol=1e-12)
