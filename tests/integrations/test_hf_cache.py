"""TurboCache: what goes in comes back decoded, what is stored is bytes, and generation and batches work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import (
    CROP_ONLY_REMOVES,
    EVERY_FAMILY,
    MASK_BY_LENGTH,
    WINDOW,
    some_tokens,
    tiny_model,
    torch,
    transformers,
)

from turbocode.codecs import make_codec
from turbocode.errors import DataError, OptionError
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_cache import TurboCache, coded_layers
from turbocode.integrations.hf_model import open_model
from turbocode.policies import CachePolicy, Recipe

ROOT = Path(__file__).parents[2]


def states(n: int, seed: int = 0, n_seqs: int = 2, dim: int = 32) -> Any:
    """Keys or values (n_seqs, 2, n, dim), all of them representable in float16."""
    values = np.random.default_rng(seed).standard_normal((n_seqs, 2, n, dim)).astype(np.float16)
    return torch.from_numpy(values.astype(np.float32))


def decoded(x: Any, name: str) -> Any:
    codec = make_codec(name, x.shape[-1])
    return torch.from_numpy(codec.decode(codec.encode(x.numpy())[0]))


@pytest.mark.parametrize("holds_blocks", [True, False])
@pytest.mark.parametrize(("sinks", "residual"), [(0, 0), (3, 0), (0, 4), (3, 4), (50, 0), (0, 50)])
def test_a_side_in_pieces(sinks: int, residual: int, holds_blocks: bool) -> None:
    x, n = states(20), 20
    side = CodedSide(make_codec("turbo3", 32), sinks, residual, holds_blocks=holds_blocks)
    at = 0
    for size in (1, 5, 2, 1, 11):
        side.append(x[:, :, at : at + size])
        at += size
        first, last = min(sinks, at), max(at - residual, min(sinks, at))
        expected = torch.cat([x[:, :, :first], decoded(x[:, :, first:last], "turbo3"), x[:, :, last:at]], dim=2)
        assert torch.equal(side.read(), expected)
        n_coded = last - first
        assert side.n_tokens == at and side.n_values == 2 * 2 * at * 32
        assert side.n_bytes == 4 * (n_coded * make_codec("turbo3", 32).bytes_per_vector + (at - n_coded) * 64)
    assert at == n
    held = [part for part in side._parts.values() if part is not None]
    if holds_blocks:
        assert sum(part.nelement() * part.element_size() for part in held) == side.n_bytes


def test_an_exact_side_is_exact() -> None:
    x = states(9) + 1e-6  # not representable in float16
    side = CodedSide(None, 2, 3, holds_blocks=True)
    side.append(x[:, :, :4])
    side.append(x[:, :, 4:])
    assert torch.equal(side.read(), x) and side.n_bytes == x.nelement() * 4


def test_bfloat16_comes_back_as_bfloat16() -> None:
    x = states(6).to(torch.bfloat16)
    side = CodedSide(make_codec("f16", 32), 1, 2, holds_blocks=True)
    side.append(x)
    assert side.read().dtype == torch.bfloat16 and torch.equal(side.read(), x)
    with pytest.raises(DataError, match="bfloat16 have no blocks"):
        side.packed_parts()


def test_what_float16_cannot_hold_is_refused() -> None:
    side = CodedSide(make_codec("turbo3", 32), 1, 0, holds_blocks=True)
    with pytest.raises(DataError, match="65504"):
        side.append(states(2) * 1e6)
    _, cache = cache_of("llama", k="turbo3", v="turbo3")
    with pytest.raises(DataError, match=r"values of layer 001.* NaN"):
        cache.update(states(2), states(2) * float("nan"), 1)


def test_a_codebook_for_each_head() -> None:
    shared = make_codec("turbo3", 32)
    codebook = shared.codebooks[0]
    other = replace(codebook, centroids=0.5 * codebook.centroids)
    per_head = make_codec("turbo3", 32, codebooks=[codebook, other])
    x = states(5)
    side = CodedSide(per_head, 0, 0, holds_blocks=True)
    side.append(x)
    for head in range(2):
        blocks = per_head.encode(x[:, head].numpy(), head)[0]
        np.testing.assert_array_equal(side.read()[:, head].numpy(), per_head.decode(blocks, head))


def cache_of(family: str, **options: Any) -> tuple[Any, TurboCache]:
    model = tiny_model(family)
    return model, TurboCache(model.config, **options)


def generate(model: Any, cache: Any, prompt: Any, n_new: int, **options: Any) -> Any:
    word = model._cache_keyword
    return model.model.generate(
        prompt, max_new_tokens=n_new, do_sample=False, pad_token_id=0, **{word: cache}, **options
    )


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_exact_cache_generates_what_the_stock_one_does(family: str) -> None:
    model, cache = cache_of(family, k="exact", v="exact")
    prompt = torch.from_numpy(some_tokens(8))[None]
    stock = transformers.DynamicCache(config=model.config)
    assert torch.equal(generate(model, cache, prompt, 12), generate(model, stock, prompt, 12))
    assert cache.get_seq_length() == 19


@pytest.mark.parametrize("options", [{}, {"residual": 5, "sinks": 2}], ids=str)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_blocks_and_decoded_values_generate_the_same(family: str, options: dict[str, int]) -> None:
    model, cache = cache_of(family, k="turbo4", v="turbo3", **options)
    policy = CachePolicy.of("turbo4", "turbo3", **options)
    plain = transformers.Cache(layers=coded_layers(model.config, policy, holds_blocks=False))
    prompt = torch.from_numpy(some_tokens(2 * 8).reshape(2, 8))
    assert torch.equal(generate(model, cache, prompt, 12), generate(model, plain, prompt, 12))
    if not options:
        assert cache.bits_per_value == pytest.approx(3.5 + 16 / 32)


def test_256_tokens_of_the_shipped_model() -> None:
    k, v = "turbo4", "turbo3"
    model = open_model(str(ROOT / "data" / "lm-tiny"))
    cache = TurboCache(model.config, k=k, v=v)
    plain = transformers.Cache(layers=coded_layers(model.config, CachePolicy.of(k, v), holds_blocks=False))
    prompt = torch.tensor([[13, 538, 1289, 265, 199, 7130, 287, 7928]])
    found = generate(model, cache, prompt, 256)
    assert found.shape == (1, 264)
    assert torch.equal(found, generate(model, plain, prompt, 256))
    assert len(set(found[0].tolist())) > 20  # it wrote a text
    vectors = 263 * 2 * 4
    assert cache.n_bytes == sum(vectors * make_codec(name, 128).bytes_per_vector for name in (k, v))


def test_beams_are_reordered() -> None:
    model, cache = cache_of("llama", k="exact", v="exact")
    prompt = torch.from_numpy(some_tokens(8))[None]
    stock = transformers.DynamicCache(config=model.config)
    ours, theirs = (generate(model, c, prompt, 10, num_beams=3) for c in (cache, stock))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_batches_change_as_the_api_demands(family: str) -> None:
    _, cache = cache_of(family, k="f16", v="f16", residual=2, sinks=1)
    stock = transformers.DynamicCache(config=tiny_model(family).config)
    for c in (cache, stock):
        c.update(states(4), states(4, 1), 0)
        c.reorder_cache(torch.tensor([1, 0]))
        c.batch_repeat_interleave(3)
        c.batch_select_indices(torch.tensor([0, 4, 5]))
    found, expected = (c.update(states(3, 2, 3), states(3, 3, 3), 0) for c in (cache, stock))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_offloaded_parts_come_back() -> None:
    _, cache = cache_of("llama", k="f16", v="f16")
    cache.update(states(4), states(4, 1), 0)
    before = cache.layers[0].sides["keys"].read()
    cache.layers[0].offload()
    cache.layers[0].prefetch()
    assert torch.equal(cache.layers[0].sides["keys"].read(), before)


def test_reset_and_reuse() -> None:
    model, cache = cache_of("mistral", k="turbo4", v="turbo4")
    prompt = torch.from_numpy(some_tokens(8))[None]
    first = generate(model, cache, prompt, 6)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.n_bytes == 0
    with pytest.raises(OptionError, match="empty"):
        _ = cache.bits_per_value
    assert torch.equal(generate(model, cache, prompt, 6), first)


@pytest.mark.parametrize("options", [{}, {"residual": 3}, {"sinks": 2, "residual": 20}], ids=str)
def test_crop_forgets_the_latest_tokens(options: dict[str, int]) -> None:
    _, cache = cache_of("llama", k="turbo4", v="turbo4", **options)
    x = states(12)
    cache.update(x, x, 0)
    before = cache.layers[0].sides["keys"].read()
    cache.crop(-5)
    assert cache.get_seq_length() == 7
    assert torch.equal(cache.layers[0].sides["keys"].read(), before[:, :, :7])
    if CROP_ONLY_REMOVES:
        cache.crop(0)
        with pytest.raises(OptionError, match="negative"):
            cache.crop(5)
    else:
        cache.crop(7)
    assert cache.get_seq_length() == 7
    keys, _ = cache.update(x[:, :, 7:], x[:, :, 7:], 0)
    assert keys.shape[2] == 12


def test_crop_of_a_full_window_is_refused_unless_the_past_is_recorded() -> None:
    _, cache = cache_of("mistral", k="f16", v="f16")
    cache.update(states(WINDOW + 4), states(WINDOW + 4), 0)
    assert cache.layers[0].sides["keys"].n_tokens == WINDOW - 1
    with pytest.raises(OptionError, match="sliding window of 6"):
        cache.crop(-1)
    if not CROP_ONLY_REMOVES:
        return
    _, recording = cache_of("mistral", k="f16", v="f16")
    recording.activate_past_recording()
    x = states(WINDOW + 4)
    recording.update(x, x, 0)
    recording.crop(-2)
    assert recording.get_seq_length() == WINDOW + 2
    assert torch.equal(recording.layers[0].sides["keys"].read(), x[:, :, 3 : WINDOW + 2])


@pytest.mark.parametrize("chunks", [[3, 3, 3, 3], [12], [1] * 12, [7, 1, 4]], ids=str)
def test_sliding_windows_hand_out_what_the_mask_expects(chunks: list[int]) -> None:
    _, cache = cache_of("mistral", k="f16", v="f16")
    stock = transformers.DynamicCache(config=tiny_model("mistral").config)
    at = 0
    for size in chunks:
        sizes = [
            c.get_mask_sizes(*([size] if MASK_BY_LENGTH else [torch.arange(at, at + size)]), 0) for c in (cache, stock)
        ]
        x = states(at + size)[:, :, at:]
        found, expected = (c.update(x, x, 0)[0] for c in (cache, stock))
        assert torch.equal(found, expected) and sizes[0] == sizes[1] and sizes[0][0] == found.shape[2]
        at += size


def test_recipes_choose_per_layer() -> None:
    model = tiny_model("llama")
    cache = TurboCache(model.config, recipe=Recipe(k="turbo4", v="turbo2", layers={"1": {"k": "q8_0"}}))
    generate(model, cache, torch.from_numpy(some_tokens(8))[None], 3)
    names = [[layer.sides[side].codec.name for side in ("keys", "values")] for layer in cache.layers]
    assert names == [["turbo4", "turbo2"], ["q8_0", "turbo2"]]


def test_mistakes_are_found_when_the_cache_is_made() -> None:
    config = tiny_model("llama").config
    for options, word in (
        ({"k": "turbo9"}, "unknown codec"),
        ({"sinks": -1}, "allowed is 0"),
        ({"recipe": Recipe(layers={"2": {"k": "f16"}})}, "layers 0 to 1"),
    ):
        with pytest.raises(OptionError, match=word):
            TurboCache(config, **options)


def test_layers_that_hold_more_than_keys_are_refused() -> None:
    config = tiny_model("gemma3").config
    config.layer_types = ["full_attention", "chunked_attention"]
    config.attention_chunk_size = 8
    with pytest.raises(OptionError, match="chunked_attention"):
        TurboCache(config)
