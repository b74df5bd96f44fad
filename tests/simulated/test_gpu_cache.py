"""A cache of packed and exact tokens in the simulator, against float64 attention over what it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import relative_error

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_cache import GpuCache
from turbocode.errors import OptionError
from turbocode.kernels.attention import cuda, prefill_cuda, reference

D, SCALE, ERROR = 64, 0.2, 1e-3


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SHAPES", (cuda.Shape(1, 1, 2),))
    monkeypatch.setattr(prefill_cuda, "SHAPES", (prefill_cuda.PrefillShape(16, 2, 1),))


class Story:
    """What was appended to each sequence, and what the cache should hold of it."""

    def __init__(self, cache: GpuCache, rng: np.random.Generator) -> None:
        self.cache, self.rng = cache, rng
        self.tokens: list[list[Any]] = [[[] for _ in range(cache.n_seqs)] for _ in cache.codecs]

    def append(self, n_tokens: int, counts: list[int] | None = None, **options: Any) -> None:
        cache = self.cache
        shape = (cache.n_seqs, cache.n_kv_heads, n_tokens, D)
        sides = [self.rng.standard_normal(shape).astype(np.float16) for _ in cache.codecs]
        for side, held in zip(sides, self.tokens, strict=True):
            for seq in range(cache.n_seqs):
                held[seq].append(side[seq, :, : counts[seq] if counts else n_tokens])
        cache.append(*sides, counts=counts, **options)

    def expected(self, queries: Any, seq: int, n_packed: int) -> Any:
        """Float64 attention of a sequence of which n_packed tokens behind the sinks are decoded ones."""
        held = []
        for codec, side in zip(self.cache.codecs, self.tokens, strict=True):
            values = np.concatenate(side[seq], axis=1)
            packed = slice(self.cache.sinks, self.cache.sinks + n_packed)
            decoded = values.astype(np.float64)
            decoded[:, packed] = codec.decode(codec.encode(values[:, packed])[0])
            held.append(decoded[None])
        n = held[0].shape[2]
        n_rows = queries.shape[2]
        last = np.arange(n - n_rows, n)[None]
        return reference.decode_attention(queries[seq : seq + 1], held[0], held[-1], last, scale=SCALE)

    def check(self, n_packed: list[int], n_rows: int = 1) -> None:
        cache = self.cache
        queries = self.rng.standard_normal((cache.n_seqs, 2 * cache.n_kv_heads, n_rows, D)).astype(np.float32)
        output, lse = cache.attend(queries, scale=SCALE)
        assert cache._exact.packed.owner.tolist() == n_packed
        for seq, packed in enumerate(n_packed):
            expected, expected_lse = self.expected(queries, seq, packed)
            assert relative_error(output[seq : seq + 1], expected) < ERROR
            np.testing.assert_allclose(lse[seq : seq + 1], expected_lse, rtol=0, atol=2 * ERROR)


def new_cache(**options: Any) -> GpuCache:
    keys = make_codec("turbo4", D)
    values = None if options.pop("is_shared", False) else make_codec("turbo3", D)
    return GpuCache(keys, values, 2, 1, 64, like=np.zeros(1, np.float32), run=8, is_exact=True, **options)


def test_tokens_move_in_whole_runs(rng: np.random.Generator) -> None:
    story = Story(new_cache(sinks=2, recent=5), rng)
    story.append(25, counts=[25, 6])
    story.check([16, 0])
    story.append(3)  # 28 and 9 tokens: tails of 10 and 7
    story.check([16, 0], n_rows=2)
    story.append(3)  # the first tail reaches 13
    story.check([24, 0])
    story.append(8)
    story.check([32, 8])
    assert story.cache.lengths.tolist() == [39, 20]


def test_a_prompt_is_attended_by_prefill(rng: np.random.Generator) -> None:
    """Its rows see sinks, packed tokens and a tail; those of a short sequence no packed ones."""
    story = Story(new_cache(sinks=2, recent=5), rng)
    story.append(25, counts=[25, 9])
    story.check([16, 0], n_rows=9)
    attentions = story.cache._attention, story.cache._exact_attention
    assert all(attention._prompt is not None for attention in attentions)
    assert story.cache._parts == {}


def test_captured_steps_decide_on_the_gpu(rng: np.random.Generator) -> None:
    """In the simulator capturing is running: the host does not count, and what is due is moved all the same."""
    story = Story(new_cache(sinks=0, recent=1), rng)
    story.append(7)
    for _ in range(3):
        story.append(1, is_captured=True)
        story.cache.replayed()
    story.check([8, 8])
    assert story.cache._packed.tolist() == [8, 8] and story.cache.lengths.tolist() == [10, 10]


def test_without_exact_tokens_a_window_works(rng: np.random.Generator) -> None:
    cache = new_cache()
    values = [rng.standard_normal((2, 1, 20, D)).astype(np.float16) for _ in range(2)]
    cache.append(*values, counts=[20, 11])
    queries = rng.standard_normal((2, 2, 1, D)).astype(np.float32)
    output, _ = cache.attend(queries, scale=SCALE, window=7)
    for seq, n in enumerate((20, 11)):
        held = [
            codec.decode(codec.encode(x[seq : seq + 1, :, :n])[0])
            for codec, x in zip(cache.codecs, values, strict=True)
        ]
        expected, _ = reference.decode_attention(
            queries[seq : seq + 1], *held, np.array([[n - 1]]), scale=SCALE, window=7
        )
        assert relative_error(output[seq : seq + 1], expected) < ERROR


def test_values_that_are_the_keys(rng: np.random.Generator) -> None:
    story = Story(new_cache(is_shared=True, sinks=2, recent=3), rng)
    story.append(15)
    story.check([8, 8])
    assert len(story.cache.blocks) == 1 and story.cache.n_bytes == 2 * (64 * 34 + 2 * 64 * (21 + 8))


def test_what_does_not_fit_is_refused() -> None:
    cache, x = new_cache(sinks=2, recent=3), np.zeros((2, 1, 9, D), np.float16)
    for keys, values, options, message in (
        (x, None, {}, "keys and values are needed"),
        (x, x[:, :, :8], {}, "new tokens have shape"),
        (x, x, {"counts": [3]}, "counts"),
        (x, x, {"counts": [3, 10]}, "counts"),
        (x, x, {"is_captured": True}, "in a graph"),
        (np.zeros((2, 1, 65, D), np.float16), np.zeros((2, 1, 65, D), np.float16), {}, "room for 64"),
    ):
        with pytest.raises(OptionError, match=message):
            cache.append(keys, values, **options)
    with pytest.raises(OptionError, match="sliding window"):
        cache.attend(np.zeros((2, 2, 1, D), np.float32), scale=1.0, window=4)
    with pytest.raises(OptionError, match="multiples of 8"):
        GpuCache(make_codec("turbo3", D), None, 1, 1, 8, like=x, run=12)
