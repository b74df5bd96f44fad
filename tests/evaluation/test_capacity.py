"""The longest contexts, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbocode.errors import DataError, NoInputError, OptionError
from turbocode.evaluation.capacity import CachePlan, ModelShape, capacities, parse_model_shape
from turbocode_cli.main import run

QWEN = ModelShape({0: 16}, 4, 256)  # 16 of its layers attend: 2 * 16 * 4 * 256 = 32,768 values a token
GIB = 1 << 30


@pytest.mark.parametrize(
    ("codec", "bytes_per_token"),
    [("f16", 64 << 10), ("q8_0", 34 << 10), ("turbo3_0", 14 << 10), ("turbo2_tcq", 9 << 10), ("turbo3", 12800)],
)
def test_bytes_of_a_token(codec: str, bytes_per_token: int) -> None:
    (row,) = capacities(QWEN, [(codec, codec)], vram=24 * GIB, weights=20 * GIB)["codecs"]
    assert row["bytes_per_token"] == bytes_per_token
    assert row["tokens"] == row["tokens_with_exact"] == 4 * GIB // bytes_per_token


def test_128k_of_context_on_24_gib() -> None:
    found = capacities(QWEN, [("f16", "f16"), ("turbo3_0", "turbo3_0")], vram=24 * GIB, weights=22 * GIB)["codecs"]
    assert [row["tokens"] for row in found] == [32768, 149796]
    assert found[1]["times_float16"] == 149796 / 32768


def test_exact_tokens_and_pairs() -> None:
    # One layer, one head of 128: turbo4 66 and turbo2 34 bytes a token, float16 512. 132 exact tokens are 67,584 bytes.
    shape = ModelShape({0: 1}, 1, 128)
    found = capacities(shape, [("turbo4", "turbo2")], vram=167_584, sinks=4, recent=128)
    (row,) = found["codecs"]
    assert (row["bits_per_value"], row["bytes_per_token"]) == (3.125, 100)
    assert (row["tokens"], row["tokens_with_exact"]) == (1675, 132 + 1000)
    (half,) = capacities(shape, [("turbo4", "turbo2")], vram=167_584, batch=2)["codecs"]
    assert half["tokens"] == 837
    short = CachePlan(shape, 66, 34, 4, 128)
    assert [short.n_bytes(n) for n in (0, 1, 132, 133)] == [0, 512, 67_584, 67_684]


def test_pages_are_whole() -> None:
    plan = CachePlan(ModelShape({0: 2}, 3, 128), 50, 50, sinks=4, page=16)
    assert plan.n_bytes(4) == 2 * 3 * 4 * 512
    assert plan.n_bytes(5) == plan.n_bytes(20) == plan.n_bytes(4) + 2 * 3 * 16 * 100
    assert plan.longest(plan.n_bytes(20)) == plan.longest(plan.n_bytes(21) - 1) == 20


def test_windows_hold_what_they_see() -> None:
    mixed = CachePlan(ModelShape({0: 1, 1024: 5}, 2, 128), 50, 34)
    assert mixed.n_bytes(5000) == 2 * 84 * (5000 + 5 * 1024)
    assert mixed.longest(2 * 84 * (5000 + 5 * 1024)) == 5000
    alone = CachePlan(ModelShape({1024: 5}, 2, 128), 50, 34)
    assert alone.longest(10 * 84 * 1024) is None and alone.longest(10 * 84 * 1024 - 1) == 1023
    (row,) = capacities(ModelShape({1024: 5}, 2, 128), [("turbo3", "turbo2")], vram=GIB)["codecs"]
    assert row["tokens"] is None and row["bytes_per_token"] == 0


CONFIG = {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 512}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ModelShape({0: 6}, 8, 64)),
        ({"num_key_value_heads": 2, "head_dim": 128}, ModelShape({0: 6}, 2, 128)),
        ({"sliding_window": 4096}, ModelShape({4096: 6}, 8, 64)),
        ({"sliding_window": 4096, "use_sliding_window": False}, ModelShape({0: 6}, 8, 64)),
        (
            {"sliding_window": 512, "layer_types": ["sliding_attention"] * 4 + ["full_attention", "linear_attention"]},
            ModelShape({512: 4, 0: 1}, 8, 64),
        ),
    ],
)
def test_shapes_of_config_files(change: dict[str, Any], expected: ModelShape, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for document in ({**CONFIG, **change}, {"model_type": "vision", "text_config": {**CONFIG, **change}}):
        path.write_text(json.dumps(document))
        assert parse_model_shape(str(path)) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[", "not JSON"),
        ("[]", "JSON object"),
        ('{"num_hidden_layers": 2}', "num_attention_heads is None"),
        (json.dumps({**CONFIG, "num_hidden_layers": True}), "num_hidden_layers is True"),
        (json.dumps({**CONFIG, "num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000"),
        (json.dumps({**CONFIG, "kv_lora_rank": 512}), "latents"),
        (json.dumps({**CONFIG, "layer_types": ["full_attention"]}), "does not name 6 layers"),
        (json.dumps({**CONFIG, "layer_types": ["chunked_attention"] * 6}), "'chunked_attention'"),
        (json.dumps({**CONFIG, "layer_types": ["conv"] * 6}), "0 layers"),
    ],
)
def test_config_files_that_say_nothing(document: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(document)
    with pytest.raises(DataError, match=message):
        parse_model_shape(str(path))


def test_what_is_no_shape_is_refused(tmp_path: Path) -> None:
    for text in ("48x8", "48x8x128x2", "ax8x128", "48*8*128", ""):
        with pytest.raises(OptionError, match="neither"):
            parse_model_shape(text)
    with pytest.raises(OptionError, match="0 KV heads"):
        parse_model_shape("48x0x128")
    with pytest.raises(NoInputError):
        parse_model_shape(str(tmp_path / "absent.json"))
    with pytest.raises(OptionError, match="nothing is left"):
        capacities(QWEN, [("f16", "f16")], vram=GIB, weights=GIB)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = "attend capacity --model-shape 16x4x256 --vram 24GiB --weights 20GiB --json"
    assert run(words.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["codecs"][0]["k"] == "f16" and len(result["codecs"]) == 18
    assert {row["k"]: row["tokens"] for row in result["codecs"]}["turbo3"] == 4 * GIB // 12800
    assert run([*words.split()[:-1], "--k", "turbo4"]) == 0
    assert "turbo4" in capsys.readouterr().out
    for shape in ("1x1x33", "1x1"):
        assert run(f"attend capacity --model-shape {shape} --vram 1GiB".split()) == 2
        assert capsys.readouterr().err.startswith("turbocode: error: ")
