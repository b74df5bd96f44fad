"""A captured dump holds what attention reads: recomputing attention from it gives the model's own outputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import EVERY_FAMILY, WITH_SINKS, some_tokens, tiny_model, torch, transformers

from turbocode.dumps import open_dump
from turbocode.errors import DataError, OptionError
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_capture import CaptureSpec, capture_dump
from turbocode.integrations.hf_fisher import FisherMeter
from turbocode.integrations.hf_model import open_model
from turbocode.integrations.hf_text import TextTokens, read_text
from turbocode.kernels.attention.reference import decode_attention

CONTEXT, WINDOWS, ROWS = 24, 2, 5
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def text(tmp_path: Path) -> Any:
    """Random tokens in the place of a text."""
    path = tmp_path / "text.txt"
    path.write_text("some text")
    windows = some_tokens(WINDOWS * CONTEXT).reshape(WINDOWS, CONTEXT)
    return SimpleNamespace(path=str(path), name="text.txt", tokenizer={}, windows=lambda n, context, bos: windows)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_attention_over_the_dump_is_the_models(family: str, text: Any, tmp_path: Path) -> None:
    model, output = tiny_model(family), tmp_path / "dump.h5"
    facts = capture_dump(model, text, output, CaptureSpec(CONTEXT, WINDOWS, ROWS, "float32"))
    outputs: list[dict[int, Any]] = []
    for window in text.windows(WINDOWS, CONTEXT, False):
        seen: dict[int, Any] = {}

        def look(call: Any, seen: dict[int, Any] = seen) -> Any:
            result = call.plain()
            seen[call.layer_index] = result[0][0].transpose(0, 1).numpy()
            return result

        with attention_by(model.model, look):
            model.hidden(window, transformers.DynamicCache(config=model.config))
        outputs.append(seen)
    with open_dump(output) as dump:
        assert dump.metadata.model == family and dump.metadata.source == "text.txt"
        assert np.array_equal(dump.tokens(), text.windows(WINDOWS, CONTEXT, False))
        assert [layer.layer_index for layer in dump.layers] == [shape.layer_index for shape in model.layers]
        assert len(facts["layers"]) == len(dump.layers)
        for layer in dump.layers:
            positions = layer.query_positions()
            assert positions.min() >= CONTEXT // 2 and (np.diff(positions) > 0).all()
            for seq in range(WINDOWS):
                heads = {
                    kind: np.stack([layer.read(kind, seq, head) for head in range(n)])[None]
                    for kind, n in (("keys", 2), ("values", 2), ("queries", 4))
                }
                found, _ = decode_attention(
                    heads["queries"],
                    heads["keys"],
                    heads["values"],
                    positions[seq : seq + 1],
                    scale=dump.metadata.attention_scale,
                    window=layer.window,
                    softcap=layer.softcap,
                )
                expected = outputs[seq][layer.layer_index][:, positions[seq]]
                np.testing.assert_allclose(found[0], expected, rtol=2e-4, atol=2e-5)


def test_a_dump_without_queries(text: Any, tmp_path: Path) -> None:
    capture_dump(tiny_model("llama"), text, tmp_path / "dump.h5", CaptureSpec(CONTEXT, WINDOWS, 0))
    with open_dump(tmp_path / "dump.h5") as dump:
        assert [layer.n_rows for layer in dump.layers] == [0, 0]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_fisher_information_is_that_of_finite_differences(family: str, text: Any, tmp_path: Path) -> None:
    """KL(exact || an error in one key or value) is 1/2 e^T F e; errors of all tokens of one side add up."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(0.7)  # less sure of its words: fewer draws will do
    meter = FisherMeter(model, seed=1)
    window = text.windows(WINDOWS, CONTEXT, False)[0]
    for _ in range(40):
        meter.add(window)
    rng = np.random.default_rng(0)
    exact = torch.log_softmax(model.head(model.states(window)).detach().double(), -1)
    for shape in model.layers:
        for side in ("keys", "values"):
            metric, found, expected = meter.metric(shape.layer_index, side), 0.0, 0.0
            assert metric.shape == (2, 32, 32) and np.array_equal(metric, metric.transpose(0, 2, 1))
            for _ in range(20):
                direction = rng.standard_normal((2, CONTEXT, 32)) * 1e-2

                def disturb(call: Any, side: str = side, error: Any = direction, at: int = shape.layer_index) -> Any:
                    if call.layer_index == at:
                        getattr(call, side).add_(torch.from_numpy(error.astype(np.float32))[None])
                    return call.plain()

                with attention_by(model.model, disturb), torch.no_grad():
                    log_q = torch.log_softmax(model.head(model.states(window)).double(), -1)
                found += float((exact.exp() * (exact - log_q)).sum())
                expected += 0.5 * float(np.einsum("jtd,jde,jte->", direction, metric, direction))
            assert found == pytest.approx(expected, rel=0.25), (shape.layer_index, side)
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_a_dump_with_fisher_information(text: Any, tmp_path: Path) -> None:
    model, plain, measured = tiny_model("qwen2"), tmp_path / "plain.h5", tmp_path / "measured.h5"
    capture_dump(model, text, plain, CaptureSpec(CONTEXT, WINDOWS))
    assert capture_dump(model, text, measured, CaptureSpec(CONTEXT, WINDOWS, fisher=True))["fisher"] is True
    with open_dump(plain) as without, open_dump(measured) as dump:
        assert without.layers[0].read_fisher("keys") is None and not without.layers[0].has_fisher
        assert dump.content_sha256() == without.content_sha256() and dump.integrity == "checksummed"
        meter = FisherMeter(model)
        for window in text.windows(WINDOWS, CONTEXT, False):
            meter.add(window)
        for layer, shape in zip(dump.layers, model.layers, strict=True):
            for side in ("keys", "values"):
                found = layer.read_fisher(side)
                assert found is not None and found.dtype == np.float32
                np.testing.assert_allclose(found, meter.metric(shape.layer_index, side), rtol=1e-6)


def test_learned_sinks_have_no_place_in_a_dump(text: Any, tmp_path: Path) -> None:
    model = tiny_model(WITH_SINKS)
    with pytest.raises(OptionError, match="learned sink") as caught:
        capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(CONTEXT, WINDOWS))
    assert "--rows 0" in str(caught.value.hint) and not (tmp_path / "dump.h5").exists()
    capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(CONTEXT, WINDOWS, 0))
    with open_dump(tmp_path / "dump.h5") as dump:
        assert len(dump.layers) == 2


def test_the_shipped_dump_is_captured_again(tmp_path: Path) -> None:
    model = open_model(str(ROOT / "data" / "lm-tiny"))
    path = ROOT / "data" / "pride_and_prejudice.txt"
    text = TextTokens(model, path, read_text(path, skip=20000)[:20000])
    assert text.tokenizer["agrees_with_file"] is True
    capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(1024))
    compare_dumps(tmp_path / "dump.h5", ROOT / "data" / "tiny-pride.h5")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the development data beside the checkout")
@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17), reason="its tokens are those of Qwen2Tokenizer"
)
def test_the_dump_of_the_larger_model_is_captured_again(tmp_path: Path) -> None:
    model = open_model(str(SHARED / "models" / "lm-hd128"))
    path = SHARED / "texts" / "wikitext2_test.txt"
    text = TextTokens(model, path, read_text(path)[:30000])
    assert text.tokenizer["agrees_with_file"] is False
    capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(2048, 2))
    compare_dumps(tmp_path / "dump.h5", SHARED / "dumps" / "hd128-wikitext2.h5")


def compare_dumps(found: Path, expected: Path) -> None:
    """Tokens, rows and attributes equal; keys, values and queries equal to the rounding of float16."""
    with open_dump(found) as ours, open_dump(expected) as theirs:
        assert np.array_equal(ours.tokens(), theirs.tokens())  # type: ignore[arg-type]
        for name in ("n_layers", "n_query_heads", "n_kv_heads", "head_dim", "attention_scale", "rope_theta", "model"):
            assert getattr(ours.metadata, name) == getattr(theirs.metadata, name), name
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            assert (a.layer_index, a.window, a.softcap, a.n_seqs) == (b.layer_index, b.window, b.softcap, b.n_seqs)
            assert np.array_equal(a.query_positions(), b.query_positions())
            for kind, n_heads in (("keys", 2), ("values", 2), ("queries", ours.metadata.n_query_heads)):
                for seq, head in np.ndindex(a.n_seqs, n_heads):
                    x, y = (layer.read(kind, seq, head) for layer in (a, b))
                    assert (x == y).mean() > 0.99
                    # One unit in the last place, and float32's error of sums around 10 where values are near zero.
                    bound = np.spacing(np.abs(y)).astype(np.float64) + 2e-5
                    assert (np.abs(x.astype(np.float64) - y) <= bound).all()


@pytest.mark.parametrize(
    ("changes", "spec", "word"),
    [
        ({}, {"n_rows": 13}, "second half of the context has 12"),
        ({}, {"context": 4096}, "allows 128"),
        ({"model": "shapes"}, {}, "one for all layers"),
    ],
)
def test_what_a_dump_cannot_hold(changes: Any, spec: Any, word: str, text: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    if changes:
        from dataclasses import replace

        model.__dict__["layers"] = (model.layers[0], replace(model.layers[1], n_kv_heads=1))
    with pytest.raises(OptionError, match=word):
        capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(**{"context": CONTEXT, "n_windows": 2, **spec}))
    assert not (tmp_path / "dump.h5").exists()


def test_values_beyond_float16_leave_no_file(text: Any, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.model.layers[1].self_attn.v_proj.weight.mul_(1e6)
    with pytest.raises(DataError, match="not finite as float16"):
        capture_dump(model, text, tmp_path / "dump.h5", CaptureSpec(CONTEXT, WINDOWS, ROWS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = open_model(str(ROOT / "data" / "lm-tiny"))
    model.text_config.vocab_size = 20
    with pytest.raises(DataError, match="it has 20 words"):
        TextTokens(model, tmp_path, "It is a truth")


def test_windows_of_a_text(tmp_path: Path) -> None:
    model = open_model(str(ROOT / "data" / "lm-tiny"))
    path = tmp_path / "short.txt"
    path.write_text("It is a truth universally acknowledged, that a single man")
    text = TextTokens(model, path, read_text(path))
    plain, begun = text.windows(2, 4), text.windows(2, 4, bos=True)
    assert np.array_equal(plain.ravel(), text.ids[:8])
    assert (begun[:, 0] == 0).all() and np.array_equal(begun[:, 1:], plain[:, 1:])
    assert TextTokens(model, path, read_text(path, skip=6)).ids[0] != text.ids[0]
    with pytest.raises(DataError, match="3 windows of 8 need 24"):
        text.windows(3, 8)
    text._tokenizer.bos_token = None
    with pytest.raises(OptionError, match="leave --bos out"):
        text.windows(2, 4, bos=True)
