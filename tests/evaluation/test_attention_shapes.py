"""Shapes of the GPU's attention benchmark, its options where there is no GPU, and the pictures of its results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks import attention_targets

from turbocode.codecs import make_codec
from turbocode.errors import OptionError
from turbocode.evaluation.attention_plots import plot_attention
from turbocode.evaluation.attention_shapes import TARGET_SHAPES, AttentionShape, sweep_shapes
from turbocode.evaluation.gpu_attention_error import some_heads
from turbocode_cli.attend_benchmark import _shapes
from turbocode_cli.attention_tables import render_gpu
from turbocode_cli.main import run


def test_bytes_of_shapes() -> None:
    shape = TARGET_SHAPES["long"]
    assert shape.float16_bytes == 2 * 131072 * 8 * 128 * 2 and shape.flops == 4 * 32 * 131072 * 128
    assert shape.row_bytes == 32 * (2 * 256 + 4)
    assert TARGET_SHAPES["wide-heads"] == AttentionShape(8, 16384, 24, 4, 256) and len(TARGET_SHAPES) == 6
    sweep = sweep_shapes(AttentionShape(q_heads=4, kv_heads=2, head_dim=64))
    assert len(sweep) == 30 and sweep["256x1048576"] == AttentionShape(256, 1048576, 4, 2, 64)


def test_some_heads_of_many() -> None:
    assert some_heads(1, 3, 0) == [(0, 0), (0, 1), (0, 2)]
    many = some_heads(64, 8, 0)
    assert len(set(many)) == 4 and many == sorted(many) == some_heads(64, 8, 0) != some_heads(64, 8, 1)
    assert all(0 <= seq < 64 and 0 <= head < 8 for seq, head in many)


def test_options_choose_shapes() -> None:
    assert _shapes((), False, {}) == TARGET_SHAPES
    assert list(_shapes(("single", "long"), False, {})) == ["long", "single"]
    assert _shapes((), False, {"tokens": 100}) == {"given": AttentionShape(tokens=100)}
    assert len(_shapes((), True, {"kv_heads": 4})) == 30
    for arguments in (
        ((), True, {"batch": 2}),
        (("long",), True, {}),
        (("long",), False, {"batch": 2}),
        (("x",), False, {}),
    ):
        with pytest.raises(OptionError):
            _shapes(*arguments)


@pytest.mark.parametrize("option", ["--sweep", "--no-plain", "--plot x.png", "--shape long"])
def test_options_about_a_gpu_need_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attend", "benchmark", "--device", "cpu", *option.split()]) == 2
    assert "is about a GPU" in capsys.readouterr().err


def result_of(shapes: dict[str, AttentionShape], has_float16: bool = True) -> dict[str, Any]:
    """A result as the benchmark gives it, at 3 TB/s and 4 microseconds."""
    found = []
    for name, shape in shapes.items():
        best = shape.float16_bytes / 4e12 + 4e-6
        timed = {"problem": None, "seconds": best, "gb_per_s": 3900.0, "share_of_copy": 0.95, "host_seconds": 2e-5}
        absent = dict.fromkeys(timed) | {"problem": "torch is not installed"}
        float16 = [{"name": "SDPA flash", "bits_per_value": 16.0, **(timed if has_float16 else absent)}]
        rows: list[dict[str, Any]] = [{"k": "odd", "v": "odd", "problem": "does not fit"}]
        for codec in ("turbo2", "turbo3"):
            n_bytes = 2 * shape.n_vectors * make_codec(codec, shape.head_dim).bytes_per_vector
            seconds = n_bytes / 3e12 + 4e-6
            ratio, allowed = best / seconds if has_float16 else None, shape.float16_bytes / n_bytes
            rows.append(
                {
                    **{"k": codec, "v": codec, "problem": None, "bits_per_value": 16 / allowed, "seconds": seconds},
                    **{
                        "gb_per_s": n_bytes / seconds / 1e9,
                        "share_of_copy": 0.7,
                        "ratio": ratio,
                        "bytes_allow": allowed,
                    },
                    **{"share_of_bytes": ratio / allowed if ratio else None, "relative_error": 3e-4},
                    **{
                        "is_within_bound": True,
                        "host_seconds": 1e-5,
                        "plain_seconds": None,
                        "plain_error": None,
                        "default_seconds": None,
                    },
                    **{"decode_seconds": 1e-4, "decoded_attention_seconds": 2e-4 if has_float16 else None},
                }
            )
        best_name = "SDPA flash" if has_float16 else None
        rivals = [{"name": "FlashInfer", "bits_per_value": 16.0, **absent}]
        facts = {"name": name, "shape": asdict(shape), "problem": None, "best_float16": best_name}
        found.append({**facts, "float16": float16, "rivals": rivals, "codecs": rows})
    found.append(
        {**found[0], "name": "huge", "problem": "needs more", "codecs": [], "float16": [], "best_float16": None}
    )
    return {
        **{"device": {"name": "GPU"}, "copy_gb_per_s": 4200.0, "repeats": 20, "l2": "cold", "error_bound": 1e-3},
        "shapes": found,
    }


@pytest.mark.parametrize("has_float16", [True, False])
def test_pictures_and_tables(has_float16: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from turbocode_cli.terminal import console_on

    result = result_of(TARGET_SHAPES, has_float16)
    plot_attention(tmp_path / "p.png", result)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    render_gpu(console_on(sys.stdout), result)
    text = capsys.readouterr().out
    assert "FlashInfer left out: torch is not installed" in text and "odd left out: does not fit" in text
    assert ("SDPA flash (best)" in text) == has_float16 and "left out: needs more" in text


def test_the_script_of_the_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of({name: TARGET_SHAPES[name] for name in ("long", "single")})
    attention_targets.write(tmp_path / "r.json", result)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    lines = [line for shape in result["shapes"] for line in attention_targets.lines_of(shape)]
    (long, single) = [line for line in lines if line.startswith("  turbo3 ")]
    assert "must 3.00 met" in long and "must 2.00" in single
    assert attention_targets.target_of("q8_0", "long") is None
