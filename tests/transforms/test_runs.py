"""Transforms that share numbers among a run of tokens: whole runs, what is left over, in files and in caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import some_tokens, tiny_model, torch, transformers

from turbocode.codecs import TransformedCodec, encode_heads, make_codec
from turbocode.conversion import dequantize_file, plan_quantize, quantize_dump
from turbocode.dumps import DumpMetadata, SynthesisSpec, create_calibration, open_dump, open_quantized, synthesize
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention
from turbocode.evaluation.dump_metrics import measure_dump
from turbocode.evaluation.verification import verify_file
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_cache import TurboCache, coded_layers
from turbocode.policies import CachePolicy, Recipe, read_recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms
from turbocode.transforms import FittedChain, FittedTransform
from turbocode.transforms.kvarn import channel_scales

J, D, RUN = 2, 32, 16
MEMORY = 1 << 26


def drifting(rng: np.random.Generator, n: int) -> Any:
    """Vectors (J, n, D) about a mean that another run does not have, channels and tokens of unequal size."""
    centres = np.repeat(rng.standard_normal((J, -(-n // RUN), D)) * 3, RUN, axis=1)[:, :n]
    x = rng.standard_normal((J, n, D)) * np.geomspace(4, 0.25, D) * rng.uniform(0.5, 2, (J, n, 1))
    return (x + centres).astype(np.float32)


def arrays_of(name: str) -> dict[str, Any]:
    found = {"mean": np.zeros((J, D), np.float16), "run": np.array([[RUN]], np.int32)}
    return found | ({"scale": np.ones((J, D), np.float16)} if name == "kvarn" else {})


def coder(name: str, codec: str = "turbo3") -> TransformedCodec:
    return TransformedCodec(make_codec(codec, D), FittedChain((FittedTransform(name, {}, arrays_of(name)),), J, D))


def error(coder: Any, x: Any) -> float:
    return float(coder.encode(x, 0)[1].nmse)


@pytest.mark.parametrize("name", ["nsn", "kvarn"])
def test_a_run_tells_what_the_calibration_cannot(name: str, rng: np.random.Generator) -> None:
    x = drifting(rng, 8 * RUN)[0]
    assert error(coder(name), x) < 0.6 * error(make_codec("turbo3", D), x)
    whole, rest = coder(name).encode(x[:RUN])[1].error, coder(name).encode(x[: RUN - 1])[1].error
    assert whole < 0.6 * rest  # one token less, and the calibration's mean, which is nothing like it, has to do


@pytest.mark.parametrize("name", ["nsn", "kvarn"])
def test_runs_are_those_of_each_sequence(name: str, rng: np.random.Generator) -> None:
    found, x = coder(name), drifting(rng, 40)
    batch = np.stack([x, 2 * x[:, ::-1]])
    blocks = encode_heads(found, batch)
    assert blocks.shape == (2, J, 40, found.bytes_per_vector)
    for seq in range(2):
        for head in range(J):
            np.testing.assert_array_equal(blocks[seq, head], found.encode(batch[seq, head], head)[0])
    cut = blocks[0, 0, RUN : 2 * RUN]
    np.testing.assert_array_equal(found.decode(cut, 0), found.decode(blocks[0, 0], 0)[RUN : 2 * RUN])
    assert found.encode(x[0, 0])[0].shape == (found.bytes_per_vector,)


def test_channels_and_tokens_are_balanced(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 64, D)) * np.geomspace(5, 0.2, D) * rng.uniform(0.2, 4, (3, 64, 1))
    scales = channel_scales(x)
    balanced = x / scales[:, None]
    balanced /= np.sqrt(np.square(balanced).mean(axis=2, keepdims=True))
    assert np.abs(np.square(balanced).mean(axis=1) - 1).max() < 1e-3
    x[:, :, 3], x[:, 5] = 0, 0  # a channel and a token that are always zero
    assert np.isfinite(channel_scales(x)).all()


def test_a_stored_run_that_is_not_allowed(rng: np.random.Generator) -> None:
    arrays = arrays_of("nsn") | {"run": np.array([[63]], np.int32)}
    with pytest.raises(DataError, match="runs of 63 tokens; allowed are 16, 32, 64, 128, 256"):
        FittedChain((FittedTransform("nsn", {}, arrays),), J, D)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """dump.h5, 300 tokens of 2 layers, queries to token 295; and a recipe with runs for both sides."""
    synthesize(tmp_path / "dump.h5", SynthesisSpec(n_layers=2, n_tokens=300, n_query_heads=4, head_dim=64, n_rows=20))
    with open_dump(tmp_path / "dump.h5") as dump:
        chains = {"keys": [parse_transforms("mean+nsn:run=64")], "values": [parse_transforms("kvarn:run=32")]}
        calibrate_dump(dump, tmp_path / "fit.h5", chains)
    text = "{k: turbo3, v: turbo3, calibration: fit.h5, transforms: {k: [mean, nsn], v: [kvarn]}}"
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path


def test_in_files(folder: Path) -> None:
    """Slabs are cut between runs, whatever memory they are given."""
    recipe = read_recipe(folder / "r.yaml")
    with open_dump(folder / "dump.h5") as dump:
        result = quantize_dump(dump, folder / "q.h5", recipe, max_memory=MEMORY)
        assert result["total"]["bits_per_value"] == pytest.approx(3.25 + (0.25 + 0.25 + 1.0) / 2, abs=0.02)
        quantize_dump(dump, folder / "small.h5", recipe, max_memory=150 * 64 * 24)
        with pytest.raises(OptionError, match="do not hold a run of 64 vectors of 64 values"):
            quantize_dump(dump, folder / "none.h5", recipe, max_memory=60 * 64 * 24)
        with open_quantized(folder / "q.h5") as whole, open_quantized(folder / "small.h5") as pieces:
            for layer, other in zip(whole.layers, pieces.layers, strict=True):
                for side in ("keys", "values"):
                    assert layer.side(side).stored_sha256 == other.side(side).stored_sha256
            dequantize_file(whole, folder / "back.h5", max_memory=70 * 64 * 24, logical_dtype="float32")
            found = [
                compare_attention(dump, source, max_memory=MEMORY)["total"]
                for source in (StoredBlocks(whole, dump), EncodedNow(plan_quantize(dump, recipe)))
            ]
        assert found[0] == found[1]
        with open_dump(folder / "back.h5") as back:
            codec = plan_quantize(dump, recipe).codecs["001", "values"]
            x = dump.layers[1].read("values", 0, 1)
            np.testing.assert_array_equal(back.layers[1].read("values", 0, 1), codec.decode(codec.encode(x, 1)[0], 1))
        exact = recipe.model_copy(update={"k": "f16", "v": "f16"})
        unchanged = compare_attention(dump, EncodedNow(plan_quantize(dump, exact)), max_memory=MEMORY)["total"]
        assert unchanged["kl_mean"] < 1e-6 and unchanged["output_error"] < 1e-3
        (row,) = measure_dump(dump, [("r", recipe)], max_memory=MEMORY, allows_same_tokens=True)["codecs"]
        assert row["total"]["kl_mean"] == pytest.approx(found[0]["kl_mean"], rel=1e-3)
    assert verify_file(folder / "q.h5", against=folder / "dump.h5")["ok"]


def states(n: int, seed: int = 0) -> Any:
    return torch.from_numpy(drifting(np.random.default_rng(seed), n)[None].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("holds_blocks", [True, False])
def test_a_cache_codes_whole_runs(holds_blocks: bool) -> None:
    """In pieces of any size: two sinks, whole runs, and 16 bits for what is not whole, or in the residual of three."""
    x, codec = states(60), coder("kvarn")
    side, at = CodedSide(codec, 2, 3, holds_blocks=holds_blocks), 0
    for size in (1, 30, 2, 17, 10):
        side.append(x[:, :, at : at + size])
        at += size
        n_coded = max(at - 2 - 3, 0) // RUN * RUN
        assert side.n_bytes == J * (n_coded * codec.bytes_per_vector + (at - n_coded) * 2 * D)
        read, exact = side.read(), x[:, :, :at]
        coded = slice(2, 2 + n_coded)
        assert torch.equal(read[:, :, :2], exact[:, :, :2]) and torch.equal(
            read[:, :, coded.stop :], exact[:, :, coded.stop :]
        )
        for head in range(J):
            decoded = codec.decode(codec.encode(exact[0, head, coded].numpy(), head)[0], head)
            np.testing.assert_array_equal(read[0, head, coded].numpy(), decoded)


def test_a_cache_forgets_tokens_within_runs() -> None:
    """The first ones are hidden until their run has gone; of a run that is cut off, the rest waits in 16 bits."""
    x, codec = states(70), coder("nsn")
    side = CodedSide(codec, 0, 0, holds_blocks=True)
    side.append(x)
    before = side.read()
    side.keep(20, 70)
    assert side.n_tokens == 50 and side.n_values == J * 50 * D
    assert side.n_bytes == J * (48 * codec.bytes_per_vector + 6 * 2 * D)  # tokens 16 to 64 as blocks
    assert torch.equal(side.read(), before[:, :, 20:])
    side.keep(5, 28)  # tokens 25 to 48 of the text: a run from 16, one from 32
    assert side.n_tokens == 23 and side.n_bytes == J * 32 * codec.bytes_per_vector
    assert torch.equal(side.read(), before[:, :, 25:48])
    side.keep(0, 20)
    assert side.n_tokens == 20 and side.n_bytes == J * (16 * codec.bytes_per_vector + 13 * 2 * D)
    np.testing.assert_allclose(side.read().numpy(), before[:, :, 25:45].numpy(), atol=4e-3 * float(before.abs().max()))
    side.append(x[:, :, :10])
    assert side.n_tokens == 30 and side.n_bytes == J * (32 * codec.bytes_per_vector + 7 * 2 * D)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    about = DumpMetadata("float16", 2, 4, J, D, D**-0.5, 0.0)
    with create_calibration(tmp_path / "run.h5", about, provenance={}, dump_sha256="0" * 64) as writer:
        for layer in ("000", "001"):
            for side, name in (("keys", "nsn"), ("values", "kvarn")):
                writer.write(layer, side, name, {}, arrays_of(name))
    (tmp_path / "r.yaml").write_text("{k: q8_0, v: q8_0, calibration: run.h5, transforms: {k: [nsn], v: [kvarn]}}")
    return read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_models_generate_with_it(family: str, recipe: Recipe) -> None:
    """gemma2 has layers with a window, which forget tokens within runs. Blocks and decoded values give the same."""
    model = tiny_model(family)
    prompt = torch.from_numpy(some_tokens(20))[None]
    found = []
    for holds_blocks in (True, False):
        cache = transformers.Cache(layers=coded_layers(model.config, CachePolicy(recipe), holds_blocks=holds_blocks))
        options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0, model._cache_keyword: cache}
        found.append(model.model.generate(prompt, **options))
    assert torch.equal(*found)
    cache = TurboCache(model.config, recipe=recipe)
    model.model.generate(prompt, **(options | {model._cache_keyword: cache}))
    assert cache.n_bytes > 0 and cache.bits_per_value > 8.5
