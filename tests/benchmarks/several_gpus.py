"""Decode attention over a cache spread over all GPUs, by heads and by tokens, beside one GPU with the whole cache.

    python tests/benchmarks/several_gpus.py FILE.json [--codec NAME] [--tokens N ...] [--calls N]

Seconds of a call are those of many in a row, without a graph, so that launches and the waits between GPUs count. The
outputs are compared with the one GPU's. Needs torch; with one GPU, its parts lie there side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from turbocode.codecs import make_codec
from turbocode.codecs.gpu_attention import GpuAttention
from turbocode.codecs.split_attention import CachePart, SplitAttention, SplitPlan, split_heads, split_tokens

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SEED_TOKENS = 1024  # that are coded; the cache repeats them
SCALE = HEAD_DIM**-0.5


def inputs(codec: Any, n_tokens: int) -> list[Any]:
    """Queries float16 (1, HEADS, 1, HEAD_DIM), blocks of keys and of values, last_token, on the first GPU."""
    import torch

    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        x = rng.standard_normal((1, KV_HEADS, SEED_TOKENS, HEAD_DIM)).astype(np.float16)
        sides.append(torch.as_tensor(codec.encode(x)[0], device="cuda:0").repeat(1, 1, n_tokens // SEED_TOKENS, 1))
    queries = torch.randn(1, HEADS, 1, HEAD_DIM, device="cuda:0", dtype=torch.float16)
    return [queries, *sides, torch.full((1, 1), n_tokens - 1, device="cuda:0", dtype=torch.int32)]


def parts_of(plan: SplitPlan, whole: list[Any], n_gpus: int) -> list[CachePart]:
    """The parts in turn on the GPUs."""
    queries, keys, values, last = whole
    per_head, parts = HEADS // KV_HEADS, []
    for number, (first, stop) in enumerate(plan.parts):
        device = f"cuda:{number % n_gpus}"
        tokens, heads = slice(first, stop), slice(first, stop)
        if plan.by == "heads":
            mine = queries[:, first * per_head : stop * per_head], keys[:, heads], values[:, heads], last
        else:
            mine = queries, keys[:, :, tokens], values[:, :, tokens], last
        parts.append(CachePart(*(array.contiguous().to(device) for array in mine)))
    return parts


def seconds_of(call: Callable[[], Any], calls: int) -> float:
    """Of a call, the least of five runs of many."""
    import torch

    found = []
    for _ in range(5):
        for number in range(torch.cuda.device_count()):
            torch.cuda.synchronize(number)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize(0)
        found.append((time.perf_counter() - start) / calls)
    return min(found)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--codec", default="turbo3")
    parser.add_argument("--tokens", type=int, nargs="+", default=[131072, 524288, 1048576])
    parser.add_argument("--calls", type=int, default=50)
    args = parser.parse_args()
    codec, n_gpus = make_codec(args.codec, HEAD_DIM), torch.cuda.device_count()
    n_parts, rows = max(2, n_gpus), []
    for n_tokens in args.tokens:
        whole, alone = inputs(codec, n_tokens), GpuAttention(codec, codec)
        expected = alone(*whole, scale=SCALE)[0].double()
        row: dict[str, Any] = {"gpu": torch.cuda.get_device_name(0), "gpus": n_gpus, "tokens": n_tokens}
        row["codec"], row["one_seconds"] = args.codec, seconds_of(lambda: alone(*whole, scale=SCALE), args.calls)  # noqa: B023
        for plan in (split_heads(KV_HEADS, n_parts), split_tokens(n_tokens, n_parts)):
            parts, split = parts_of(plan, whole, n_gpus), SplitAttention(codec, codec, plan)
            found = split(parts, scale=SCALE)[0].double()
            row[f"{plan.by}_error"] = float((found - expected).norm() / expected.norm())
            assert row[f"{plan.by}_error"] < 1e-3, row
            row[f"{plan.by}_seconds"] = seconds_of(lambda: split(parts, scale=SCALE), args.calls)  # noqa: B023
        rows.append(row)
        print(row, flush=True)
        args.file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
