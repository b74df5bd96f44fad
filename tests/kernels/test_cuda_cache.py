"""On a real GPU: the cache with exact tokens, eagerly and in a graph; parts on two streams; comparing a dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import AttentionCase, relative_error
from helpers.gpu_arrays import down, up

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.gpu_cache import GpuCache
from turbocode.codecs.split_attention import CachePart, SplitAttention, split_heads, split_tokens
from turbocode.evaluation.environment import cuda_problem
from turbocode.kernels.attention import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}"),
]
ERROR = 1e-3
DUMP = Path(__file__).parents[2] / "data" / "tiny-pride.h5"


@pytest.fixture(scope="module")
def gpu() -> Any:
    from turbocode.kernels._graph import Gpu

    return Gpu(0)


class Story:
    """A cache and what was appended to each of its sequences."""

    def __init__(self, gpu: Any, cache: GpuCache, rng: np.random.Generator) -> None:
        self.gpu, self.cache, self.rng = gpu, cache, rng
        self.tokens: list[list[Any]] = [[[] for _ in range(cache.n_seqs)] for _ in cache.codecs]
        self.scale = float(cache.codecs[0].head_dim) ** -0.5

    def values(self, n_tokens: int) -> list[Any]:
        shape = (self.cache.n_seqs, self.cache.n_kv_heads, n_tokens, self.cache.codecs[0].head_dim)
        return [self.rng.standard_normal(shape).astype(np.float16) for _ in self.cache.codecs]

    def note(self, sides: list[Any], counts: list[int] | None = None) -> None:
        for side, held in zip(sides, self.tokens, strict=True):
            for seq in range(self.cache.n_seqs):
                held[seq].append(side[seq, :, : counts[seq] if counts else None])

    def append(self, n_tokens: int, counts: list[int] | None = None) -> None:
        sides = self.values(n_tokens)
        self.note(sides, counts)
        self.cache.append(*(up(self.gpu, side) for side in sides), counts=counts, stream=self.gpu.stream)

    def check(self, queries: Any, output: Any, lse: Any) -> None:
        cache = self.cache
        packed = down(self.gpu, cache._exact.packed)
        for seq in range(cache.n_seqs):
            held = []
            for codec, side in zip(cache.codecs, self.tokens, strict=True):
                values = np.concatenate(side[seq], axis=1)
                n_packed = int(packed[seq]) if cache.has_exact_tokens else values.shape[1]
                inner = slice(cache.sinks, cache.sinks + n_packed)
                decoded = values.astype(np.float64)
                decoded[:, inner] = codec.decode(codec.encode(values[:, inner])[0])
                held.append(decoded[None])
            n, n_rows = held[0].shape[2], queries.shape[2]
            last = np.arange(n - n_rows, n)[None]
            expected, expected_lse = reference.decode_attention(
                queries[seq : seq + 1], held[0], held[-1], last, scale=self.scale
            )
            assert relative_error(output[seq : seq + 1], expected) < ERROR
            np.testing.assert_allclose(lse[seq : seq + 1], expected_lse, rtol=0, atol=5 * ERROR)


def story_of(gpu: Any, rng: np.random.Generator, **options: Any) -> Story:
    like = gpu.empty((1,), "float16")
    keys, values = make_codec("turbo4", 128), make_codec("turbo3", 128)
    return Story(gpu, GpuCache(keys, values, 2, 4, 2048, like=like, is_exact=True, **options), rng)


@pytest.mark.parametrize("options", [{"sinks": 4, "recent": 100}, {"sinks": 3, "recent": 0, "run": 8}, {}], ids=str)
def test_a_cache_step_by_step(options: dict[str, int], gpu: Any, rng: np.random.Generator) -> None:
    story = story_of(gpu, rng, **options)
    story.append(700, counts=[700, 23])
    for n_tokens in (1, 1, 5, 8, 33, 1, 64, 1):
        story.append(n_tokens)
        queries = rng.standard_normal((2, 8, min(2, n_tokens), 128)).astype(np.float32)
        output, lse = story.cache.attend(up(gpu, queries), scale=story.scale, stream=gpu.stream)
        story.check(queries, down(gpu, output), down(gpu, lse))


def test_a_prompt_is_attended_by_prefill(gpu: Any, rng: np.random.Generator) -> None:
    story = story_of(gpu, rng, sinks=4, recent=100)
    story.append(1500, counts=[1500, 1450])
    queries = rng.standard_normal((2, 16, 1450, 128)).astype(np.float16)
    output, lse = story.cache.attend(up(gpu, queries), scale=story.scale, stream=gpu.stream)
    assert story.cache._attention._prompt is not None and story.cache._exact_attention._prompt is not None
    story.check(queries, down(gpu, output), down(gpu, lse))


def test_a_step_in_a_graph(gpu: Any, rng: np.random.Generator) -> None:
    """Sequences of different length, whose runs are due in different replays."""
    story = story_of(gpu, rng, sinks=2, recent=9, run=8)
    story.append(60, counts=[60, 33])
    cache, n_steps = story.cache, 20
    token = [up(gpu, side) for side in story.values(1)]
    queries = up(gpu, np.zeros((2, 8, 1, 128), np.float16))
    out, lse = gpu.empty((2, 8, 1, 128), "float16"), gpu.empty((2, 8, 1), "float32")

    def step() -> None:
        cache.append(*token, is_captured=True, stream=gpu.stream)
        cache.attend(queries, scale=story.scale, out=out, lse=lse, stream=gpu.stream)

    def feed() -> Any:
        sides, rows = story.values(1), rng.standard_normal((2, 8, 1, 128)).astype(np.float16)
        story.note(sides)
        for host, place in (*zip(sides, token, strict=True), (rows, queries)):
            gpu.upload(host, place)
        gpu.wait()
        return rows

    rows = feed()
    step()  # compiles, and makes what calls keep
    cache.replayed()
    gpu.wait()
    graph = gpu.capture(step)
    for _ in range(n_steps):
        story.check(rows.astype(np.float32), down(gpu, out).astype(np.float32), down(gpu, lse))
        rows = feed()
        gpu.replay(graph)
        cache.replayed()
    assert cache.lengths.tolist() == down(gpu, cache._exact.lengths).tolist() == [81, 54]
    assert cache._packed.tolist() == down(gpu, cache._exact.packed).tolist()
    gpu.forget(graph)


@pytest.mark.parametrize("by", ["heads", "tokens"])
def test_parts_on_two_streams(by: str, gpu: Any, rng: np.random.Generator) -> None:
    """As on two GPUs, with two streams of one."""
    from turbocode.kernels._graph import Gpu

    case = AttentionCase("turbo4", "turbo3", n_seqs=2, n_heads=8, n_kv_heads=4, n_tokens=3000, norm=1.0)
    arrays = case.build(rng)
    plan = split_heads(4, 2) if by == "heads" else split_tokens(3000, 2)
    attention, places = SplitAttention(*case.codecs(), plan), (gpu, Gpu(0))
    parts = []
    for place, (first, stop) in zip(places, plan.parts, strict=True):
        queries, keys, values = (arrays[name] for name in ("queries", "keys", "values"))
        if by == "heads":
            queries, keys, values = queries[:, 2 * first : 2 * stop], keys[:, first:stop], values[:, first:stop]
        else:
            keys, values = keys[:, :, first:stop], values[:, :, first:stop]
        names = [up(place, x) for x in (queries, keys, values, arrays["last_token"])]
        parts.append(CachePart(*names, stream=place.stream))
    for _ in range(3):
        output, lse = attention(parts, scale=case.scale)
    assert relative_error(down(gpu, output), arrays["output"]) < ERROR
    np.testing.assert_allclose(down(gpu, lse), arrays["lse"], rtol=0, atol=5 * ERROR)


def test_the_plain_kernel_can_be_captured(gpu: Any, rng: np.random.Generator) -> None:
    case = AttentionCase(n_tokens=500, norm=1.0)
    arrays = case.build(rng)
    attention = GpuAttention(*case.codecs(), is_plain=True)
    names = [up(gpu, arrays[name]) for name in ("queries", "keys", "values", "last_token")]
    out, lse = gpu.empty(arrays["queries"].shape, "float32"), gpu.empty(arrays["lse"].shape, "float32")

    def call() -> None:
        attention(*names, scale=case.scale, out=out, lse=lse, stream=gpu.stream)

    assert gpu.graph_seconds(call, 3) > 0
    assert relative_error(down(gpu, out), arrays["output"]) < 1e-5


def test_a_dump_compares_as_on_the_cpu() -> None:
    from turbocode.codecs.host_attention import HostAttention
    from turbocode.conversion import plan_quantize
    from turbocode.dumps import open_dump
    from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
    from turbocode.policies import Recipe

    with open_dump(DUMP) as dump:
        source = EncodedNow(plan_quantize(dump, Recipe(k="turbo3", v="turbo4")))
        on_cpu = compare_attention(dump, source, max_memory=1 << 30)["total"]
        on_gpu = compare_attention(dump, source, max_memory=1 << 30, attend=HostAttention(0))["total"]
    assert on_cpu["kernel_error"] < 1e-5 and on_gpu["kernel_error"] < ERROR
    assert on_gpu["output_error"] == pytest.approx(on_cpu["output_error"], abs=ERROR)
    rounded = "best_v_gain", "best_v_gain_error"
    assert [on_gpu[key] for key in rounded] == pytest.approx([on_cpu[key] for key in rounded], abs=ERROR)
    figures = [key for key in on_cpu if key not in ("kernel_error", "output_error", *rounded)]
    assert {key: on_gpu[key] for key in figures} == {key: on_cpu[key] for key in figures}


def test_the_benchmark_measures(gpu: Any) -> None:
    from turbocode.evaluation.attention_shapes import AttentionShape
    from turbocode.evaluation.gpu_attention_benchmark import benchmark_attention_on_gpu

    shapes = {"small": AttentionShape(2, 4096, 8, 2, 128), "odd": AttentionShape(1, 1001, 4, 2, 64)}
    pairs = [("turbo3", "turbo3"), ("turbo4", "trellis2"), ("q8_0", "q4_0")]
    result = benchmark_attention_on_gpu(0, shapes, pairs, repeats=5)
    assert result["copy_gb_per_s"] > 10
    for shape in result["shapes"]:
        assert shape["problem"] is None
        assert result["torch"] is None or shape["best_float16"] is not None
        for row in shape["codecs"]:
            assert row["problem"] is None and row["is_within_bound"] and row["plain_error"] < ERROR
            assert 0 < row["share_of_copy"] < 1.5 and row["seconds"] < row["plain_seconds"] * 2
            assert result["torch"] is None or row["decoded_attention_seconds"] > row["decode_seconds"]
