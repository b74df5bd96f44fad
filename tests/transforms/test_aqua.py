"""Prediction from the layer below: what it finds, what is read back, in files, in caches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import some_tokens, tiny_model, torch, transformers

from turbocode.codecs import TransformedCodec, decode_attention, make_codec
from turbocode.conversion import dequantize_file, plan_quantize, quantize_dump
from turbocode.conversion.danger import dangerous_keys
from turbocode.conversion.layers_below import LayersBelow
from turbocode.dumps import DumpMetadata, create_dump, open_dump, open_quantized, read_calibration
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention
from turbocode.evaluation.dump_metrics import measure_dump
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.evaluation.verification import verify_file
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_cache import TurboCache, coded_layers
from turbocode.policies import CachePolicy, read_recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms
from turbocode.transforms import FittedChain, FittedTransform
from turbocode.transforms.aqua import Aqua, before_rope, stored_predictor
from turbocode.transforms.rope import rotations, turned

J, D, T, LAYERS, THETA = 2, 32, 300, 3, 10_000.0
MEMORY, SIDES = 1 << 26, ("keys", "values")


def write_dump(path: Path, head_dim: int = D) -> None:
    """Layers of which each is, before RoPE, a linear map of the one below and a tenth of noise."""
    rng = np.random.default_rng(5)
    about = DumpMetadata("float32", LAYERS, J, J, head_dim, head_dim**-0.5, THETA)
    cosine, sine = rotations(head_dim, THETA, np.arange(T))
    width = J * head_dim

    def mixed(*inputs: Any) -> Any:
        parts = [x @ rng.standard_normal((width, width)) / np.sqrt(width * len(inputs)) for x in inputs]
        return sum(parts) + 0.1 * rng.standard_normal((2 * T, width)) + 1.0

    keys, values = rng.standard_normal((2, 2 * T, width))
    with create_dump(path, about) as writer:
        for number in range(LAYERS):
            if number:
                keys = mixed(keys)
                values = mixed(keys, values)
            layer = writer.add_layer(f"{number:03d}", layer_index=number, n_seqs=2, n_tokens=T, n_rows=8)
            for side, x in (("keys", keys), ("values", values)):
                x = x.reshape(2, T, J, head_dim).transpose(0, 2, 1, 3)
                x = turned(x, cosine, sine) if side == "keys" else x
                for seq in range(2):
                    for head in range(J):
                        layer.write(side, seq, head, 0, x[seq, head].astype(np.float32))
            for seq in range(2):
                for head in range(J):
                    layer.write("queries", seq, head, 0, rng.standard_normal((8, head_dim)).astype(np.float32))
            layer.write_positions(np.tile(np.arange(T - 20, T, 2)[:8], (2, 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dump.h5; fit.h5 with `aqua` and what comes behind it; r.yaml: keys by aqua+mean, values by aqua."""
    path = tmp_path_factory.mktemp("aqua")
    write_dump(path / "dump.h5")
    with open_dump(path / "dump.h5") as dump:
        chains = {
            "keys": [parse_transforms(text) for text in ("aqua+mean", "mean", "aqua+nsn:run=16")],
            "values": [parse_transforms(text) for text in ("aqua", "mean", "aqua+kvarn:run=16")],
        }
        calibrate_dump(dump, path / "fit.h5", chains)
    for name, k, v in (
        ("r", "[aqua, mean]", "[aqua]"),
        ("means", "[mean]", "[mean]"),
        ("runs", "[aqua, nsn]", "[aqua, kvarn]"),
    ):
        text = f"{{k: turbo3, v: turbo3, calibration: fit.h5, transforms: {{k: {k}, v: {v}}}}}"
        (path / f"{name}.yaml").write_text(text)
    return path


def test_what_a_linear_map_explains_is_found(folder: Path) -> None:
    found = read_calibration(folder / "fit.h5")
    for layer in ("001", "002"):
        for side in SIDES:
            about = found.entry(layer, side, "aqua").about
            assert 0.98 < about["variance_predicted"] < 0.999  # a hundredth is noise, and a ridge costs a little
    assert abs(found.entry("000", "keys", "aqua").about["variance_predicted"]) < 0.05
    assert set(found.entry("000", "keys", "aqua").arrays) == {"bias", "rope_theta"}
    assert "values_below" not in found.entry("000", "values", "aqua").arrays


@pytest.mark.parametrize("side", SIDES)
def test_the_identity_codec_changes_nothing(side: str, folder: Path) -> None:
    """Whatever the prediction is worth, and in whatever pieces it is computed: to rounding of float16's blocks."""
    found = read_calibration(folder / "fit.h5").entry("002", side, "aqua")
    chain = FittedChain((FittedTransform("aqua", {}, found.arrays),), J, D)
    codec, rng = TransformedCodec(make_codec("f16", D), chain), np.random.default_rng(0)
    assert chain.predictor is not None
    x = rng.standard_normal((J, 50, D)).astype(np.float32)
    given = [rng.standard_normal((J, 50, D)).astype(np.float32) for _ in chain.predictor.sources]
    whole = codec.with_prediction(chain.predictor.predict(given, np.arange(100, 150)))
    piece = codec.with_prediction(chain.predictor.predict([g[:, 7:20] for g in given], np.arange(107, 120)))
    for head in range(J):
        blocks, report = whole.encode(x[head], head)
        np.testing.assert_allclose(whole.decode(blocks, head), x[head], atol=4e-3)
        assert report.nmse < 1e-6
        np.testing.assert_allclose(piece.decode(blocks[7:20], head), whole.decode(blocks, head)[7:20], atol=1e-5)
        np.testing.assert_array_equal(whole.for_head(head).decode(blocks), whole.decode(blocks, head))


def test_attention_is_unchanged_to_rounding(folder: Path) -> None:
    """With float16 in the place of a codec, over all layers, each predicted from the one below as it was decoded."""
    recipe = read_recipe(folder / "r.yaml").model_copy(update={"k": "f16", "v": "f16"})
    with open_dump(folder / "dump.h5") as dump:
        found = compare_attention(dump, EncodedNow(plan_quantize(dump, recipe)), max_memory=MEMORY)["total"]
    assert found["kl_mean"] < 1e-6 and found["output_error"] < 1e-3


def test_rope_is_undone_and_rounding_is_made_up_for(rng: np.random.Generator) -> None:
    """A predictor that is told the truth: targets are a map of the keys below, both turned, and have a mean."""
    weight, mean = rng.standard_normal((J, D, J * D)), rng.standard_normal(J * D)
    positions, x = np.arange(1000, 1200), rng.standard_normal((J, 200, D)) + mean.reshape(J, 1, D)
    cosine, sine = rotations(D, THETA, positions)
    flat = x.transpose(1, 0, 2).reshape(200, -1)
    target = (flat @ weight.transpose(0, 2, 1)) + 3.0
    arrays = stored_predictor({"keys_below": weight}, target.mean(axis=1), {"keys_below": flat.mean(axis=0)}, THETA)
    found = Aqua.predictor(arrays, J, D).predict([turned(x, cosine, sine)], positions)
    error = before_rope(found, THETA, positions) - target
    assert np.square(error).mean() < 1e-3 * target.var() and np.abs(error.mean(axis=1)).max() < 0.02


def test_in_files(folder: Path) -> None:
    """As many bits behind the mean alone lose far more; pieces, however small, give the same blocks."""
    recipe = read_recipe(folder / "r.yaml")
    with open_dump(folder / "dump.h5") as dump:
        result = quantize_dump(dump, folder / "q.h5", recipe, max_memory=MEMORY)
        plan = plan_quantize(dump, recipe)
        extra = sum(codec.constant_bits for codec in plan.codecs.values()) / 6
        n_weights = J * D * J * D
        assert extra == pytest.approx(
            8 * (2 * n_weights + n_weights * 5) / 6 / (32_768 * J * D), rel=0.15
        )  # and a scale a row
        assert result["total"]["bits_per_value"] == pytest.approx(3.5 + extra)
        plain = quantize_dump(dump, folder / "means.h5", read_recipe(folder / "means.yaml"), max_memory=MEMORY)
        for row, other in zip(result["layers"][2:], plain["layers"][2:], strict=True):
            assert row["nmse"] < 0.1 * other["nmse"]
        quantize_dump(dump, folder / "small.h5", recipe, max_memory=100 * D * 24, force=True)
        with open_quantized(folder / "q.h5") as whole, open_quantized(folder / "small.h5") as pieces:
            for layer, other_layer in zip(whole.layers, pieces.layers, strict=True):
                same = layer.side("keys").read(1, 1) == other_layer.side("keys").read(1, 1)
                assert same.mean() > 0.999  # a sum in another order may move a value across a boundary
            dequantize_file(whole, folder / "back.h5", max_memory=50 * D * 24)
            found = [
                compare_attention(dump, source, max_memory=MEMORY)
                for source in (StoredBlocks(whole, dump), EncodedNow(plan))
            ]
            assert found[0]["total"]["kl_mean"] == pytest.approx(found[1]["total"]["kl_mean"], rel=1e-3)
            assert found[0]["total"]["kernel_error"] is None and found[0]["layers"][2]["nmse_k"] < 0.005
        (row,) = measure_dump(dump, [("r", recipe)], max_memory=MEMORY, allows_same_tokens=True)["codecs"]
        assert row["total"]["kl_mean"] == pytest.approx(found[0]["total"]["kl_mean"], rel=1e-2)
        with open_dump(folder / "back.h5") as back:
            exact = dump.layers[2].read("values", 1, 0).astype(np.float64)
            error = np.square(back.layers[2].read("values", 1, 0) - exact).sum() / np.square(exact).sum()
            assert error == pytest.approx(result["layers"][5]["nmse"], rel=0.3)  # of one head; the figure is of all
        assert dangerous_keys(dump, plan) == []
    assert verify_file(folder / "q.h5", against=folder / "dump.h5")["ok"]
    assert verify_file(folder / "fit.h5")["ok"]


def test_a_run_behind_a_prediction(folder: Path) -> None:
    with open_dump(folder / "dump.h5") as dump:
        quantize_dump(dump, folder / "runs.h5", read_recipe(folder / "runs.yaml"), max_memory=100 * D * 24)
    assert verify_file(folder / "runs.h5", against=folder / "dump.h5")["ok"]


def model_of(n_layers: int = LAYERS) -> Any:
    return tiny_model("llama", num_hidden_layers=n_layers)


@pytest.mark.parametrize(("name", "options"), [("r", {"sinks": 3, "residual": 5}), ("runs", {})])
def test_every_way_through_a_model(name: str, options: dict[str, int], folder: Path) -> None:
    """Blocks and decoded values, in one go and token by token, two sequences, generate the same."""
    model, policy = model_of(), CachePolicy.of_recipe(read_recipe(folder / f"{name}.yaml"), **options)
    prompt, found = torch.from_numpy(some_tokens(2 * 20).reshape(2, 20)), []
    for holds_blocks in (True, False):
        cache = transformers.Cache(layers=coded_layers(model.config, policy, holds_blocks=holds_blocks))
        arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, model._cache_keyword: cache}
        found.append(
            (model.model.generate(prompt, **arguments), [side for x in cache.layers for side in x.sides.values()])
        )
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one._latest is None  # nothing decoded is left behind
        assert one.n_bytes == other.n_bytes
        np.testing.assert_allclose(one.read().numpy(), other.read().numpy(), atol=2e-3)


@pytest.mark.parametrize("name", ["r", "runs"])
def test_tokens_are_cut_off(name: str, folder: Path) -> None:
    """Also within runs of 16, of which what is left waits in 16 bits; then others come."""
    model, policy = model_of(), CachePolicy.of_recipe(read_recipe(folder / f"{name}.yaml"))
    cache = transformers.Cache(layers=coded_layers(model.config, policy))
    rng = np.random.default_rng(3)
    states = torch.from_numpy(rng.standard_normal((LAYERS, 2, 1, J, 60, D)).astype(np.float32))
    for number in range(LAYERS):
        cache.update(*states[number, :, :, :, :40], number)
    before = [[side.read().clone() for side in layer.sides.values()] for layer in cache.layers]
    cache.crop(-5)
    for number, layer in enumerate(cache.layers):
        for side, old in zip(layer.sides.values(), before[number], strict=True):
            assert side.n_tokens == 35
            np.testing.assert_allclose(side.read().numpy(), old[:, :, :35].numpy(), atol=0.02)
    for number in range(LAYERS):
        keys, values = cache.update(*states[number, :, :, :, 40:], number)
        for found, exact in ((keys, states[number, 0]), (values, states[number, 1])):
            error = np.square((found[:, :, 35:] - exact[:, :, 40:]).numpy()).mean()
            assert found.shape[2] == 55 and error < 0.3


def test_a_cache_is_what_a_file_is(folder: Path) -> None:
    """The dump's own keys and values, put into caches layer by layer, in pieces."""
    with open_dump(folder / "dump.h5") as dump:
        plan = plan_quantize(dump, read_recipe(folder / "r.yaml"))
        exact = {
            (layer.name, side): np.stack([[layer.read(side, seq, head) for head in range(J)] for seq in range(2)])
            for layer in dump.layers
            for side in SIDES
        }
        reference = LayersBelow(dump.layers, plan.codecs, J, D)
    sides: dict[tuple[str, str], CodedSide] = {}
    for name, side in exact:
        under = f"{int(name) - 1:03d}"
        below = [(under, "keys")] if side == "keys" else [(name, "keys"), (under, "values")]
        sources = [sides[key] for key in below if key in sides]
        sides[name, side] = CodedSide(plan.codecs[name, side], 0, 0, holds_blocks=True, sources=sources)
    for start, stop in ((0, 130), (130, 131), (131, T)):
        for key, cached in sides.items():
            cached.append(torch.from_numpy(exact[key][:, :, start:stop]))
    for (name, side), x in exact.items():
        for seq, head in np.ndindex(2, J):
            coder = reference.coder(name, side, seq, 0, T)
            decoded = coder.decode(coder.encode(x[seq, head], head)[0], head)
            reference.put(name, side, seq, head, 0, decoded)
            found = sides[name, side].read()[seq, head].numpy()
            is_same = np.abs(found - decoded).max(axis=1) < 1e-4
            assert is_same.mean() > 0.98  # a sum in another order may move a value across a boundary


def test_evaluation_counts_the_weights(folder: Path) -> None:
    recipes = [read_recipe(folder / f"{name}.yaml") for name in ("r", "means")]
    policies = [CachePolicy.of_recipe(recipe, name=name) for recipe, name in zip(recipes, "ab", strict=True)]
    window = some_tokens(40)[None]
    rows = evaluate_policies(model_of(), window, policies, EvaluationMode(), max_memory=1 << 30)["codecs"]
    chunked = evaluate_policies(model_of(), window, policies[:1], EvaluationMode(chunk=7), max_memory=1 << 30)["codecs"]
    assert rows[0]["bits_per_value"] - rows[1]["bits_per_value"] == pytest.approx(8 * 7 * J * D / 6 / 32_768, rel=0.1)
    assert chunked[0]["kl_mean"] == pytest.approx(rows[0]["kl_mean"], rel=0.02)
    with pytest.raises(OptionError, match="packed attention does not read blocks of aqua"):
        evaluate_policies(model_of(), window, policies[:1], EvaluationMode(packed=True), max_memory=1 << 30)


def test_what_cannot_be_is_refused_in_one_line(folder: Path) -> None:
    recipe = read_recipe(folder / "r.yaml")
    with pytest.raises(OptionError, match="aqua predicts layer 0 from the layer below; in a running cache"):
        TurboCache(tiny_model("mistral").config, recipe=recipe)
    with pytest.raises(OptionError, match="has to be the first"):
        parse_transforms("mean+aqua")
    with pytest.raises(OptionError, match="aqua has ridge 0"):
        parse_transforms("aqua:ridge=0")
    with pytest.raises(OptionError, match="does not go behind aqua"), open_dump(folder / "dump.h5") as dump:
        calibrate_dump(dump, folder / "x.h5", {"values": [parse_transforms("aqua+gain:codec=turbo3")]})
    with open_dump(folder / "dump.h5") as dump:
        codec = plan_quantize(dump, recipe).codecs["001", "keys"]
        x = dump.layers[1].read("keys", 0, 0)
    with pytest.raises(OptionError, match="is read with that layer only"):
        codec.encode(x, 0)
    blocks = np.zeros((1, J, 4, codec.bytes_per_vector), np.uint8)
    with pytest.raises(OptionError, match="does not read blocks of aqua"):
        decode_attention(np.zeros((1, J, 1, D), np.float32), codec, blocks, codec, blocks, np.array([[3]]), scale=1.0)
    runs = CodedSide(make_codec("turbo3", D), 0, 0, holds_blocks=True)
    runs.codec = TransformedCodec(make_codec("turbo3", D), _chain(folder, "000", "keys", "aqua", "aqua.nsn"))
    with pytest.raises(OptionError, match="runs of 1; a cache cannot predict them from ones in runs of 16"):
        CodedSide(codec, 0, 0, holds_blocks=True, sources=[runs])


def _chain(folder: Path, layer: str, side: str, *keys: str) -> FittedChain:
    entries = [read_calibration(folder / "fit.h5").entry(layer, side, key) for key in keys]
    steps = [FittedTransform(key.rpartition(".")[2], {}, e.arrays) for key, e in zip(keys, entries, strict=True)]
    return FittedChain(tuple(steps), J, D)


def test_damage_is_noticed(folder: Path) -> None:
    found = read_calibration(folder / "fit.h5").entry("001", "keys", "aqua")
    for other in (
        {key: array for key, array in found.arrays.items() if key != "bias"},
        found.arrays | {"keys_below": found.arrays["keys_below"][:, :, :-1]},
        found.arrays | {"keys_below_scale": 0 * found.arrays["keys_below_scale"]},
        found.arrays | {"rope_theta": np.array([[-1.0]])},
        found.arrays
        | {"values_below": found.arrays["keys_below"], "values_below_scale": found.arrays["keys_below_scale"]},
    ):
        with pytest.raises(DataError):
            FittedChain((FittedTransform("aqua", {}, other),), J, D)
    with pytest.raises(DataError, match="aqua has to be the first"):
        FittedChain(
            (
                FittedTransform("walsh", {}, {"group": np.array([[D]], np.int32)}),
                FittedTransform("aqua", {}, found.arrays),
            ),
            J,
            D,
        )
    with open_dump(folder / "dump.h5") as dump:
        plan = plan_quantize(dump, read_recipe(folder / "r.yaml"))
        odd = dict(plan.codecs) | {("000", "keys"): plan.codecs["001", "keys"]}
        with pytest.raises(
            DataError, match="keys of layer 000 are predicted from a layer that has not the same tokens"
        ):
            LayersBelow(dump.layers, odd, J, D)
        odd = dict(plan.codecs) | {("001", "keys"): plan.codecs["001", "values"]}
        with pytest.raises(DataError, match="keys of layer 001 are predicted from themselves"):
            LayersBelow(dump.layers, odd, J, D)
        with pytest.raises(DataError, match="other KV heads"):
            LayersBelow(dump.layers, plan.codecs, J + 1, D)
        below = LayersBelow(dump.layers, plan.codecs, J, D)
        with pytest.raises(DataError, match="keys of layer 000 could not be read, from which keys of layer 001"):
            below.coder("001", "keys", 0, 0, T)
    assert json.dumps(plan.codecs["001", "values"].describe())
