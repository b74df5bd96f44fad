"""Times of decode attention and of prefill over a packed cache by the number of query rows: what AnyRows chooses by.

    python tests/benchmarks/prompt_rows.py FILE.json [--codec NAME] [--tokens N ...] [--rows N ...] [--page N]

Rows are the last of a sequence's tokens; decode attention takes 64 at a time, as models' packed caches do. Seconds of
both, of prefill over pages too, the blocks of prefill a multiprocessor, and what AnyRows takes. Needs torch with CUDA.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from prefill_times import seconds_of  # puts the package in reach

ROWS = (16, 64, 128, 256, 512, 1024, 2048)
TOKENS = (4096, 32768)
AT_ONCE = 64


def paged(sides: list[Any], page: int) -> tuple[list[Any], Any]:
    """Blocks (1, J, T, bytes) as pages in any order, and where each page lies, int32 (1, T / page)."""
    import torch

    n = sides[0].shape[2] // page
    order = torch.randperm(n, device=sides[0].device)
    stored = [side[0].unflatten(1, (n, page)).transpose(0, 1)[order].contiguous() for side in sides]
    return stored, torch.argsort(order).int()[None]


def row_of(args: argparse.Namespace, n_tokens: int, n_rows: int) -> dict[str, Any]:
    """The times of one shape."""
    import torch

    from turbocode.codecs import make_codec
    from turbocode.codecs.gpu_any_rows import BLOCK_ROWS, AnyRows
    from turbocode.codecs.gpu_attention import GpuAttention
    from turbocode.codecs.gpu_codec import GpuCodec
    from turbocode.codecs.gpu_prefill import GpuPrefill

    d, codec = args.head_dim, make_codec(args.codec, args.head_dim)
    blocks = [
        GpuCodec(codec).encode(torch.randn(1, args.kv_heads, n_tokens, d, device="cuda", dtype=torch.float16))
        for _ in range(2)
    ]
    pages, table = paged(blocks, args.page)
    queries = torch.randn(1, args.heads, n_rows, d, device="cuda", dtype=torch.float16)
    last = torch.arange(n_tokens - n_rows, n_tokens, device="cuda", dtype=torch.int32)[None]
    out, lse = torch.empty_like(queries), torch.empty(queries.shape[:-1], device="cuda")
    step, prefill = GpuAttention(codec, codec), GpuPrefill(codec, codec)
    options = {"scale": float(d) ** -0.5, "out": out, "lse": lse}
    pieces = [
        (queries[:, :, i : i + AT_ONCE].contiguous(), last[:, i : i + AT_ONCE].contiguous())
        for i in range(0, n_rows, AT_ONCE)
    ]

    def in_steps() -> None:
        for rows, seen in pieces:
            step(rows, *blocks, seen, scale=options["scale"])

    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    return {
        "codec": args.codec,
        "tokens": n_tokens,
        "rows": n_rows,
        "blocks_per_multiprocessor": args.heads * n_rows / BLOCK_ROWS / multiprocessors,
        "takes_prefill": AnyRows(codec, codec).is_prompt(*queries.shape[:3], args.kv_heads),
        "step_seconds": seconds_of(in_steps, args.repeats),
        "prefill_seconds": seconds_of(functools.partial(prefill, queries, *blocks, last, **options), args.repeats),
        "paged_seconds": seconds_of(
            functools.partial(prefill, queries, *pages, last, pages=table, **options), args.repeats
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--codec", default="turbo3")
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--page", type=int, default=64)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    found = []
    for n_tokens in args.tokens:
        for n_rows in args.rows:
            found.append(row_of(args, n_tokens, n_rows))
            print(found[-1], flush=True)
            args.file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
