"""How fast the cpu kernels are, each beside a baseline that is timed in the same run on the same inputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.codecs import Codec, decode_attention, make_codec
from turbocode.errors import OptionError
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.machine import cpu_model, usable_cores
from turbocode.kernels.attention import reference
from turbocode.kernels.attention.skipping import EVERYTHING, Skipping

Float32 = NDArray[np.float32]


def numpy_attention(queries: Float32, keys: Float32, values: Float32, scale: float) -> Float32:
    """The baseline: float32 matrix products and softmax over unpacked (B, J, T, D) caches, queries (B, H, 1, D)."""
    batch, kv_heads, _, d = keys.shape
    q = queries.reshape(batch, kv_heads, -1, d) * np.float32(scale)
    s = np.matmul(q, keys.transpose(0, 1, 3, 2))
    s -= s.max(axis=-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=-1, keepdims=True)
    return np.matmul(s, values).reshape(queries.shape)


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `repeats` calls, after one that is not counted (compilation, page faults)."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def benchmark_attention(
    shape: AttentionShape,
    pairs: Sequence[tuple[str, str]],
    *,
    repeats: int = 7,
    seed: int = 0,
    max_memory: int,
    advance: Callable[[int], None] | None = None,
    skipping: Skipping = EVERYTHING,
    logit_scale: float = 1.0,
) -> dict[str, Any]:
    """Times of encoding, decoding and attention for each (K codec, V codec), beside NumPy on the unpacked cache.

    Inputs are Gaussian float16 from `seed`. Per pair: encode and decode rates in vectors per second (keys), seconds of
    the packed attention and of the baseline, their ratio, GB/s of packed bytes read, and the relative L2 error against
    float64 attention over the decoded values (first KV head of the first sequence). With `skipping` also whole_s and
    whole_error, of leaving out nothing; logit_scale is a factor on all logits, whose standard deviation is else 1.
    """
    if shape.working_bytes > max_memory:
        raise OptionError(
            f"these shapes need {shape.working_bytes} bytes of memory; {max_memory} are allowed",
            hint="use fewer --tokens or a smaller --batch, or raise --max-memory",
        )
    codecs = [(make_codec(k, shape.head_dim), make_codec(v, shape.head_dim)) for k, v in pairs]
    rng = np.random.default_rng(seed)
    cache_shape = (shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
    keys, values = (rng.standard_normal(cache_shape, dtype=np.float32).astype(np.float16) for _ in range(2))
    queries = rng.standard_normal((shape.batch, shape.q_heads, 1, shape.head_dim), dtype=np.float32)
    scale = logit_scale * shape.head_dim**-0.5
    keys32, values32 = keys.astype(np.float32), values.astype(np.float32)
    rows = []
    for codec_k, codec_v in codecs:
        rows.append(
            _benchmark_pair(codec_k, codec_v, keys, values, keys32, values32, queries, scale, repeats, skipping)
        )
        if advance:
            advance(1)
    return {
        "machine": {"cpu": cpu_model(), "cores": usable_cores()},
        "shape": asdict(shape),
        "repeats": repeats,
        "seed": seed,
        **skipping._asdict(),
        "logit_scale": logit_scale,
        "codecs": rows,
    }


def _benchmark_pair(
    codec_k: Codec,
    codec_v: Codec,
    keys: NDArray[np.float16],
    values: NDArray[np.float16],
    keys32: Float32,
    values32: Float32,
    queries: Float32,
    scale: float,
    repeats: int,
    skipping: Skipping,
) -> dict[str, Any]:
    key_blocks, value_blocks = codec_k.encode(keys)[0], codec_v.encode(values)[0]
    last = np.full((len(queries), 1), keys.shape[2] - 1)

    def attend(left_out: Skipping = skipping) -> Float32:
        sides = codec_k, key_blocks, codec_v, value_blocks
        return decode_attention(queries, *sides, last, scale=scale, skipping=left_out)[0]

    def error_of(output: Float32) -> float:
        return float(np.linalg.norm(output[:1, :heads] - exact) / np.linalg.norm(exact))

    n_vectors = keys.size // keys.shape[-1]
    packed = timed(attend, repeats)
    baseline = timed(lambda: numpy_attention(queries, keys32, values32, scale), repeats)
    heads = queries.shape[1] // keys.shape[1]
    exact, _ = reference.decode_attention(
        queries[:1, :heads],
        codec_k.decode(key_blocks[:1, :1]),
        codec_v.decode(value_blocks[:1, :1]),
        last[:1],
        scale=scale,
    )
    whole = timed(lambda: attend(EVERYTHING), repeats) if skipping.is_on else None
    return {
        "k": codec_k.name,
        "v": codec_v.name,
        "bits_per_value": (codec_k.bits_per_value + codec_v.bits_per_value) / 2,
        "encode_vectors_per_s": n_vectors / timed(lambda: codec_k.encode(keys), max(1, repeats // 2)),
        "decode_vectors_per_s": n_vectors / timed(lambda: codec_k.decode(key_blocks), max(1, repeats // 2)),
        "attention_s": packed,
        "numpy_float32_s": baseline,
        "ratio": baseline / packed,
        "packed_gb_per_s": (key_blocks.nbytes + value_blocks.nbytes) / packed / 1e9,
        "relative_error": error_of(attend()),
        "whole_s": whole,
        "whole_error": error_of(attend(EVERYTHING)) if skipping.is_on else None,
    }
