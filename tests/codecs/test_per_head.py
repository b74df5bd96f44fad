"""A codec for each KV head: rows of all heads in files and caches, attention, bits, recipes, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache_modes import check_every_way
from helpers.tiny_models import tiny_model, torch

from turbocode.codecs import PerHeadCodec, coder_from_description, decode_attention, encode_heads, make_codec
from turbocode.conversion import dequantize_file, plan_quantize, quantize_dump
from turbocode.dumps import SynthesisSpec, create_quantized, open_dump, open_quantized, synthesize
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention
from turbocode.evaluation.dump_metrics import measure_dump
from turbocode.evaluation.inspection import inspect_file
from turbocode.evaluation.verification import verify_file
from turbocode.export.codec_source import codec_of_file
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_cache import TurboCache
from turbocode.policies import CachePolicy, Recipe
from turbocode.policies.recipe import parse_recipe, read_recipe, recipe_text, restricted
from turbocode.training.calibrate import calibrate_dump, parse_transforms

J, D, MEMORY, SIDES = 2, 32, 1 << 26, ("keys", "values")
MIXED = {"k": "turbo3", "v": "turbo2", "layers": {"1": {"heads": {"1": {"k": "q8_0"}, "0": {"v": "turbo4"}}}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads")
    spec = SynthesisSpec(n_layers=2, n_seqs=2, n_tokens=150, n_query_heads=4, head_dim=D, n_rows=10)
    synthesize(path / "dump.h5", spec)
    with open_dump(path / "dump.h5") as dump:
        chains = {"keys": [parse_transforms("aqua+mean")], "values": [parse_transforms("nsn:run=16")]}
        calibrate_dump(dump, path / "fit.h5", chains)
    return path


def behind_transforms(folder: Path) -> Recipe:
    transforms = {"k": ["aqua", "mean"], "v": ["nsn"]}
    return parse_recipe(MIXED | {"calibration": str(folder / "fit.h5"), "transforms": transforms})


def mixed() -> PerHeadCodec:
    return PerHeadCodec((make_codec("turbo3", D), make_codec("q8_0", D)))


def test_heads_of_a_recipe_are_chosen_in_order() -> None:
    recipe = parse_recipe(
        {
            "k": "turbo3",
            "layers": {
                "0-1": {"heads": {"0-1,3": {"k": "turbo4"}, "1": {"k": "turbo2", "v": "q8_0"}}},
                "1": {"k": "f16", "heads": {"2": {"k": "q4_0"}}},
            },
        }
    )
    chosen = [[str(spec) for spec in recipe.codecs_for(layer, "keys", 4)] for layer in range(3)]
    assert chosen == [
        ["turbo4", "turbo2", "turbo3", "turbo4"],
        ["f16", "f16", "q4_0", "f16"],
        ["turbo3", "turbo3", "turbo3", "turbo3"],
    ]
    assert [str(spec) for spec in recipe.codecs_for(0, "values", 4)] == ["turbo3", "q8_0", "turbo3", "turbo3"]
    assert parse_recipe(recipe.model_dump(exclude_none=True)) == recipe
    assert {str(spec) for spec in restricted(recipe, [2], 3).codecs_for(0, "keys", 4)} == {"f16"}


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        ({"a": {"k": "turbo3"}}, "heads 'a'"),
        ({"0": {"k": "turbo"}}, "unknown codec"),
        ({"0": {"q": "turbo3"}}, "unknown key"),
    ],
)
def test_heads_that_mean_nothing_are_refused(heads: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_recipe({"layers": {"0": {"heads": heads}}})


def test_heads_that_are_not_there_and_codecs_for_all_heads(folder: Path) -> None:
    with open_dump(folder / "dump.h5") as dump:
        with pytest.raises(OptionError, match="heads '1-2' of layer 1: there are KV heads 0 to 1"):
            plan_quantize(dump, parse_recipe({"layers": {"1": {"heads": {"1-2": {"k": "q8_0"}}}}}))
        with pytest.raises(OptionError, match="multirate is fitted to all heads of keys of layer 1"):
            plan_quantize(dump, parse_recipe({"layers": {"1": {"heads": {"1": {"k": "multirate"}}}}}))


@pytest.mark.parametrize("is_transformed", [False, True])
def test_in_files(is_transformed: bool, folder: Path) -> None:
    recipe = behind_transforms(folder) if is_transformed else parse_recipe(MIXED)
    path = folder / f"q{is_transformed}.h5"
    with open_dump(folder / "dump.h5") as dump:
        plan = plan_quantize(dump, recipe)
        result = quantize_dump(dump, path, recipe, max_memory=50 * D * 24)
        codec = plan.codecs["001", "keys"]
        assert isinstance(codec, PerHeadCodec) and result["layers"][2]["codec"].endswith("q8_0")
        assert plan.codecs["001", "values"].bits_per_value > plan.codecs["000", "values"].bits_per_value + 0.9
        widths = {side: plan.codecs["001", side].widths for side in SIDES}  # type: ignore[attr-defined]
        uniform = sum(plan.codecs["000", side].bytes_per_vector for side in SIDES)
        assert result["total"]["n_bytes"] == 2 * 150 * (J * uniform + sum(map(sum, widths.values())))
        with open_quantized(path) as stored:
            side = stored.layers[1].side("values")
            assert side.widths == widths["values"] and side.row_bytes == sum(widths["values"])
            assert [side.read(1, head, 3, 7).shape for head in range(J)] == [(4, n) for n in widths["values"]]
            blocks = plan.codecs["001", "values"].encode(dump.layers[1].read("values", 1, 1), 1)[0]
            np.testing.assert_array_equal(side.read(1, 1), blocks)
            again = coder_from_description(json.loads(json.dumps(side.codec)), side.arrays())
            assert (
                again.describe() == side.codec and again.bits_per_value == plan.codecs["001", "values"].bits_per_value
            )
            dequantize_file(stored, folder / f"back{is_transformed}.h5", max_memory=MEMORY, logical_dtype="float32")
            found = [
                compare_attention(dump, source, max_memory=MEMORY)["total"]
                for source in (StoredBlocks(stored, dump), EncodedNow(plan))
            ]
        assert found[0]["kl_mean"] == pytest.approx(found[1]["kl_mean"], rel=1e-3)
        if not is_transformed:
            assert found[0]["kernel_error"] < 1e-5
        (row,) = measure_dump(dump, [("r", recipe)], max_memory=MEMORY, allows_same_tokens=True)["codecs"]
        assert row["total"]["kl_mean"] == pytest.approx(found[0]["kl_mean"], rel=1e-2)
        assert row["total"]["bits_per_value"] == pytest.approx(result["total"]["bits_per_value"])
        with open_dump(folder / f"back{is_transformed}.h5") as back:
            exact = [dump.layers[1].read("keys", 0, head).astype(np.float64) for head in range(J)]
            errors = [
                np.square(back.layers[1].read("keys", 0, h) - exact[h]).sum() / np.square(exact[h]).sum()
                for h in range(J)
            ]
            assert errors[1] < 0.01 * errors[0]  # head 1 has q8_0
    assert verify_file(path, against=folder / "dump.h5")["ok"]
    shown = inspect_file(path)["layers"][1]["values"]
    assert shown["bits_per_value"] == 8 * sum(widths["values"]) / (J * D)
    if not is_transformed:
        assert codec_of_file(path, layer=1, side="k", head=1).name == "q8_0"
        with pytest.raises(OptionError, match=r"codecs of their own, turbo3\|q8_0; choose one with --head"):
            codec_of_file(path, layer=1, side="k")


def test_packed_attention_is_that_of_each_head(rng: np.random.Generator) -> None:
    keys, values = rng.standard_normal((2, 1, J, 70, D)).astype(np.float32)
    queries, last = rng.standard_normal((1, 4, 3, D)).astype(np.float32), np.array([[66, 67, 69]])
    k, v = mixed(), make_codec("turbo4", D)
    blocks = encode_heads(k, keys), encode_heads(v, values)
    assert blocks[0].shape == (1, 1, 70, sum(k.widths))
    output, lse = decode_attention(queries, k, blocks[0], v, blocks[1], last, scale=0.2)
    for head, name in enumerate(("turbo3", "q8_0")):
        codec, some = make_codec(name, D), slice(2 * head, 2 * head + 2)
        one = codec.encode(keys[:, head : head + 1])[0]
        expected = decode_attention(queries[:, some], codec, one, v, blocks[1][:, head : head + 1], last, scale=0.2)
        np.testing.assert_array_equal(output[:, some], expected[0])
        np.testing.assert_array_equal(lse[:, some], expected[1])
    with pytest.raises(OptionError, match="do not fit"):
        decode_attention(queries[:, :3], k, blocks[0], v, blocks[1], last, scale=0.2)


def test_a_cache_holds_rows(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((3, J, 20, D)).astype(np.float16).astype(np.float32))
    side = CodedSide(mixed(), 2, 4, holds_blocks=True)
    for start, stop in ((0, 9), (9, 20)):
        side.append(x[:, :, start:stop])
    assert side.n_values == 3 * J * 20 * D
    assert side.n_bytes == 3 * (14 * sum(mixed().widths) + 6 * J * D * 2)
    for head, name in enumerate(("turbo3", "q8_0")):
        codec = make_codec(name, D)
        decoded = codec.decode(codec.encode(x[:, head, 2:16].numpy())[0])
        np.testing.assert_array_equal(side.read()[:, head, 2:16].numpy(), decoded)
    side.keep(0, 11)
    assert side.n_bytes == 3 * (9 * sum(mixed().widths) + 2 * J * D * 2)


def test_every_way_through_a_model_meets_the_same_cache() -> None:
    recipe = parse_recipe({"k": "q8_0", "v": "q8_0", "layers": {"0-1": {"heads": {"1": {"k": "turbo4", "v": "f16"}}}}})
    check_every_way("gemma2", CachePolicy(recipe, sinks=3), 24, 0.5, 1e-3)
    cache = TurboCache(tiny_model("llama").config, recipe=recipe)
    cache.update(torch.ones(1, J, 5, D), torch.ones(1, J, 5, D), 0)
    assert cache.bits_per_value == pytest.approx((8.5 + 4.5 + 8.5 + 16) / 4)


def test_what_does_not_belong_together(folder: Path) -> None:
    with pytest.raises(OptionError, match="do not code heads of one side"):
        PerHeadCodec((make_codec("turbo3", D), make_codec("turbo3", 2 * D)))
    with open_dump(folder / "dump.h5") as dump:
        behind = plan_quantize(dump, behind_transforms(folder)).codecs["001", "values"]
    assert isinstance(behind, PerHeadCodec)
    with pytest.raises(OptionError, match="transforms of 2 KV heads do not go with codecs of 1"):
        PerHeadCodec(behind.coders[:1])
    description, arrays = behind.describe(), behind.arrays()
    for key, value in (("widths", [1, 2]), ("version", 2), ("heads", []), ("heads", [{}]), ("transforms", None)):
        with pytest.raises(DataError):
            coder_from_description(description | {key: value}, arrays)


@pytest.mark.parametrize("widths", [[16, 17], [16], "1", [0, 34], [16.0, 18.0]])
def test_stored_widths_that_lie_are_refused(widths: Any, folder: Path, tmp_path: Path) -> None:
    with open_dump(folder / "dump.h5") as dump:
        about = dump.metadata
    with create_quantized(tmp_path / "q.h5", about, recipe={}, provenance={}, dump_sha256="0" * 64) as writer:
        for number in range(2):
            layer = writer.add_layer(f"{number:03d}", layer_index=number, n_seqs=1, n_tokens=4)
            for side in SIDES:
                target = layer.add_side(side, codec={"widths": widths}, bytes_per_vector=18, widths=[16, 18])
                target.write(0, 0, 0, np.zeros((4, 34), np.uint8))
                target.finish({})
    with pytest.raises(DataError, match=r"widths must be 2 positive numbers|shape is"):
        open_quantized(tmp_path / "q.h5").close()


def test_a_recipe_is_written_and_read(tmp_path: Path) -> None:
    recipe = parse_recipe(MIXED)
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / "r.yaml") == recipe
