"""Compiles what an attention benchmark needs on all cores before it begins, by small calls in processes of their own.

Machine code is kept on disk (kernels/_kernel_cache.py), where the benchmark's own process finds it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np

from turbocode.codecs import make_codec
from turbocode.errors import OptionError
from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.machine import usable_cores
from turbocode.kernels.attention.lookup import TableKind
from turbocode.kernels.attention.skipping import EVERYTHING, Skipping

MAX_PROCESSES = 16  # each takes some hundred MiB of the GPU's memory
WARM_TOKENS = 64
ALIGNMENT = 16  # tokens after which rows of any size begin at multiples of 16 bytes again
COLUMNS = 8  # query rows of a KV head that a kernel takes at a time
ENCODE, DECODE, ATTEND, PLAIN = "encode", "decode", "attend", "plain"


class Job(NamedTuple):
    """One small call. kind : ENCODE, DECODE, ATTEND or PLAIN; k, v : codecs, the same for the first two"""

    kind: str
    k: str
    v: str
    shape: AttentionShape
    skipping: Skipping = EVERYTHING
    tables: TableKind | None = None


def jobs_for(
    shapes: Iterable[AttentionShape],
    pairs: Sequence[tuple[str, str]],
    plain: Sequence[str] | None,
    skipping: Skipping = EVERYTHING,
    tables: TableKind | None = None,
) -> list[Job]:
    """Calls of the kernels that `benchmark_attention_on_gpu` uses, slow ones first; codecs that do not fit left out."""
    found = []
    for shape in shapes:
        # What kernels differ by: head_dim, whether eight columns are enough, and where rows begin.
        tokens, n_heads = WARM_TOKENS + shape.tokens % ALIGNMENT, min(2, shape.kv_heads)
        per_head = 1 if shape.q_heads // shape.kv_heads <= COLUMNS else COLUMNS + 1
        small = AttentionShape(1, tokens, n_heads * per_head, n_heads, shape.head_dim)
        for k, v in pairs:
            if not all(_fits(name, shape.head_dim) for name in (k, v)):
                continue
            found += [Job(ATTEND, k, v, small), Job(ATTEND, k, v, small, skipping, tables)]
            if plain is None or k in plain:
                found.append(Job(PLAIN, k, v, small))
            for name in (k, v):
                group = make_codec(name, shape.head_dim).block_format.group_size
                alone = AttentionShape(1, tokens, n_heads, n_heads, group)
                found += [Job(kind, name, name, alone) for kind in (DECODE, ENCODE)]
    order = (ATTEND, PLAIN, DECODE, ENCODE)
    return sorted(dict.fromkeys(found), key=lambda job: order.index(job.kind))


def _fits(name: str, head_dim: int) -> bool:
    try:
        make_codec(name, head_dim)
    except OptionError:
        return False
    return True


def compile_for(jobs: Sequence[Job], device: int, advance: Callable[[int], None] | None = None) -> None:
    """Make every job's call, on as many cores as there are; advance : called with 1 after each.

    Raises what the first job that failed raised, when all are over.
    """
    n = min(MAX_PROCESSES, usable_cores(), len(jobs))
    if n == 0:
        return
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
        submitted = [pool.submit(run_job, job, device) for job in jobs]
        for _ in as_completed(submitted):
            if advance:
                advance(1)
    for done in submitted:
        done.result()


def run_job(job: Job, device: int) -> None:
    """Make one job's call on random blocks."""
    from turbocode.codecs.gpu_attention import GpuAttention
    from turbocode.codecs.gpu_codec import GpuCodec
    from turbocode.kernels._graph import Gpu

    gpu, shape = Gpu(device), job.shape
    codecs = [make_codec(name, shape.head_dim) for name in (job.k, job.v)]
    rows = (shape.batch, shape.kv_heads, shape.tokens)

    def zeros(size: tuple[int, ...], dtype: str) -> Any:
        array = gpu.empty(size, dtype)
        gpu.upload(np.zeros(size, dtype), array)
        return array

    blocks = [zeros((*rows, codec.bytes_per_vector), "uint8") for codec in codecs]
    if job.kind == ENCODE:
        values = zeros((*rows, shape.head_dim), "float16")
        GpuCodec(codecs[0], is_exact=False).encode(values, out=blocks[0], stream=gpu.stream)
    elif job.kind == DECODE:
        for is_exact, dtype in ((False, "float16"), (True, "float32")):
            target = gpu.empty((*rows, shape.head_dim), dtype)
            GpuCodec(codecs[0], is_exact=is_exact).decode(blocks[0], out=target, stream=gpu.stream)
    else:
        queries = zeros((shape.batch, shape.q_heads, 1, shape.head_dim), "float16")
        last = zeros((shape.batch, 1), "int32")
        out, lse = gpu.empty(queries.shape, "float16"), gpu.empty(queries.shape[:-1], "float32")
        attention = GpuAttention(*codecs, is_plain=job.kind == PLAIN, skipping=job.skipping, tables=job.tables)
        with contextlib.suppress(OptionError):  # tables that the codecs do not have: the benchmark says so
            attention(queries, blocks[0], blocks[1], last, scale=1.0, out=out, lse=lse, stream=gpu.stream)
    gpu.wait()
