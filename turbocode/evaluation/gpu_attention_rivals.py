"""What decode attention over packed blocks is measured against: torch's attention over float16, and other projects'.

Each is looked for when it is asked for. One that is not installed, or fails, is a row that says why instead of a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from turbocode.evaluation.attention_shapes import AttentionShape
from turbocode.evaluation.cold_timing import Work
from turbocode.evaluation.gpu_memory import GpuMemory, torch_problem

FLASHINFER_WORKSPACE = 128 << 20  # bytes, as its documentation has it
FLASHINFER_PAGE = 16
VLLM_PAGE = 16
VLLM_BITS = (3, 4)
VLLM_SPLITS = 32
_NORM_BYTES = 2


@dataclass(frozen=True)
class Rival:
    """work : one attention over copy i, or None; n_bytes : read and written; problem : why there is no work

    bits_per_value : of what it reads; context : makes the context in which it has to be called
    """

    name: str
    work: Work | None
    n_bytes: int
    bits_per_value: float = 16.0
    problem: str | None = None
    context: Callable[[], Any] = nullcontext


def float16_attention(
    memory: GpuMemory, shape: AttentionShape, queries: Any, copies: list[tuple[Any, Any]], scale: float
) -> list[Rival]:
    """torch's scaled_dot_product_attention by cuDNN and by flash, with query heads that share KV heads and as rows.

    copies : float16 keys and values (n_seqs, n_kv_heads, n_tokens, head_dim). As rows, the query heads of a KV head are
    rows of one head's queries, which is the same attention while there is one new token.
    """
    n_bytes = shape.float16_bytes + shape.row_bytes
    names = [f"SDPA {kind}{rows}" for kind in ("cuDNN", "flash") for rows in ("", ", heads as rows")]
    if memory.torch is None:
        return [Rival(name, None, n_bytes, problem=torch_problem()) for name in names]
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    rows = queries.view(shape.batch, shape.kv_heads, shape.q_heads // shape.kv_heads, shape.head_dim)
    found = []
    for name in names:
        backend = SDPBackend.CUDNN_ATTENTION if "cuDNN" in name else SDPBackend.FLASH_ATTENTION
        as_rows = name.endswith("rows")

        def work(i: int, as_rows: bool = as_rows) -> Any:
            keys, values = copies[i % len(copies)]
            if as_rows:
                return attend(rows, keys, values, scale=scale)
            return attend(queries, keys, values, scale=scale, enable_gqa=shape.q_heads != shape.kv_heads)

        found.append(Rival(name, work, n_bytes, context=functools.partial(sdpa_kernel, [backend])))
    return found


def flashinfer_attention(
    memory: GpuMemory, shape: AttentionShape, queries: Any, copies: list[tuple[Any, Any]], scale: float
) -> Rival:
    """FlashInfer's batched decode over float16 pages of FLASHINFER_PAGE tokens, on tensor cores."""
    name, n_bytes = "FlashInfer", shape.float16_bytes + shape.row_bytes
    problem = torch_problem() or _missing("flashinfer")
    if problem is None and shape.tokens % FLASHINFER_PAGE:
        problem = f"{shape.tokens} tokens are no multiple of a page of {FLASHINFER_PAGE}"
    if problem:
        return Rival(name, None, n_bytes, problem=problem)
    torch = memory.torch
    import flashinfer

    # Its pages hold the heads of some tokens; Gaussian values may lie in any order, so that no copy is needed.
    pages_of = shape.tokens // FLASHINFER_PAGE
    n_pages = shape.batch * pages_of
    paged = [
        tuple(side.view(n_pages, shape.kv_heads, FLASHINFER_PAGE, shape.head_dim) for side in sides) for sides in copies
    ]
    workspace = torch.zeros(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=memory.device)
    starts = torch.arange(0, n_pages + 1, pages_of, dtype=torch.int32, device=memory.device)
    numbers = torch.arange(n_pages, dtype=torch.int32, device=memory.device)
    full = torch.full((shape.batch,), FLASHINFER_PAGE, dtype=torch.int32, device=memory.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace,
        "HND",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=starts.clone(),
        paged_kv_indices_buffer=numbers.clone(),
        paged_kv_last_page_len_buffer=full.clone(),
    )
    wrapper.plan(
        *(starts, numbers, full, shape.q_heads, shape.kv_heads, shape.head_dim, FLASHINFER_PAGE),
        q_data_type=torch.float16,
        kv_data_type=torch.float16,
        sm_scale=scale,
    )
    rows = queries.view(shape.batch, shape.q_heads, shape.head_dim)
    return Rival(name, lambda i: wrapper.run(rows, paged[i % len(paged)]), n_bytes)


def vllm_attention(memory: GpuMemory, shape: AttentionShape, queries: Any, bits: int, scale: float) -> Rival:
    """vLLM's Triton kernel over its packed cache; blocks of zeros, for the time only. bits : of VLLM_BITS"""
    side = shape.head_dim * bits // 8 + _NORM_BYTES
    slot = 2 * side + _NORM_BYTES  # values have a scale and a zero
    n_bytes = shape.n_vectors * slot + shape.row_bytes
    name, rate = f"vLLM Triton, {bits} bits", 8 * slot / (2 * shape.head_dim)
    problem = torch_problem() or _missing("vllm")
    if problem is None and shape.tokens % VLLM_PAGE:
        problem = f"{shape.tokens} tokens are no multiple of a page of {VLLM_PAGE}"
    if problem:
        return Rival(name, None, n_bytes, rate, problem)
    torch = memory.torch
    from vllm.v1.attention.ops.triton_turboquant_decode import triton_turboquant_decode_attention

    pages_of = shape.tokens // VLLM_PAGE
    n_pages = shape.batch * pages_of
    cache = torch.zeros((n_pages, VLLM_PAGE, shape.kv_heads, slot), dtype=torch.uint8, device=memory.device)
    table = torch.arange(n_pages, dtype=torch.int32, device=memory.device).view(shape.batch, pages_of)
    lengths = torch.full((shape.batch,), shape.tokens, dtype=torch.int32, device=memory.device)
    turn = torch.eye(shape.head_dim, device=memory.device)
    centroids = torch.linspace(-2, 2, 1 << bits, device=memory.device) / math.sqrt(shape.head_dim)
    rows = queries.view(shape.batch, shape.q_heads, shape.head_dim)

    def work(i: int) -> Any:
        return triton_turboquant_decode_attention(
            *(rows, cache, table, lengths, turn, centroids, scale, bits, side, bits),
            PiT=turn,
            max_num_kv_splits=VLLM_SPLITS,
        )

    return Rival(name, work, n_bytes, rate)


def _missing(package: str) -> str | None:
    from importlib.util import find_spec

    return None if find_spec(package) else f"{package} is not installed"
