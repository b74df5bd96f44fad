"""Times of prefill attention over a packed cache on a GPU, beside float16 attention; its error against float64.

    python tests/benchmarks/prefill_times.py FILE.json [--codec NAME] [--tokens N] [--shape TILE,WARPS,BLOCKS] ...

Causal attention of a whole prompt. Of each codec: seconds, TFLOP/s (four operations a visible pair and channel), the
ratio to torch's best float16 attention, the seconds of decoding the cache first and attending in float16, and the L2
error against float64 attention over the decoded values of some rows. Needs torch with CUDA.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

CODECS = ("turbo4", "turbo3", "turbo2", "trellis3", "trellis2", "turbo3_tcq", "q8_0", "q4_0", "f16")
TOKENS = (2048, 4096, 8192, 16384, 32768)
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION")
SAMPLE_ROWS = 16  # of each of two heads, spread over the prompt
WARM_UPS = 3


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """The median time of a call on the GPU."""
    import torch

    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times)


def float16_times(queries: Any, keys: Any, values: Any, repeats: int) -> dict[str, Any]:
    """Seconds of torch's float16 attention by backend, or why there are none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    found: dict[str, Any] = {}
    for name in BACKENDS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                found[name] = seconds_of(
                    lambda: scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True),
                    repeats,
                )
        except RuntimeError as failure:
            found[name] = str(failure).splitlines()[0]
    return found


def sample_error(output: Any, queries: Any, keys: Any, values: Any, scale: float) -> float:
    """The relative L2 error of some rows against float64 attention over float32 keys and values."""
    import torch

    n_heads, n_tokens = queries.shape[1], keys.shape[2]
    per_head = n_heads // keys.shape[1]
    rows = torch.linspace(0, n_tokens - 1, SAMPLE_ROWS, device=queries.device).long()
    difference = total = 0.0
    for head in (0, n_heads - 1):
        k, v = keys[0, head // per_head].double(), values[0, head // per_head].double()
        logits = scale * queries[0, head, rows].double() @ k.T
        hidden = torch.arange(n_tokens, device=queries.device) > rows[:, None]
        exact = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        difference += float((output[0, head, rows].double() - exact).square().sum())
        total += float(exact.square().sum())
    return float((difference / total) ** 0.5)


def codec_times(
    name: str, queries: Any, keys: Any, values: Any, shapes: list[Any], repeats: int
) -> Iterator[dict[str, Any]]:
    """A row for each layout of the kernel; `problem` where it has no figures."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from turbocode.codecs import make_codec
    from turbocode.codecs.gpu_codec import GpuCodec
    from turbocode.codecs.gpu_prefill import GpuPrefill

    codec, scale = make_codec(name, queries.shape[-1]), float(queries.shape[-1]) ** -0.5
    coder = GpuCodec(codec)
    blocks = [coder.encode(x) for x in (keys, values)]
    exact = [coder.decode(x, dtype="float32") for x in blocks]

    def decode_first() -> Any:
        decoded = [coder.decode(x, dtype="float16") for x in blocks]
        return scaled_dot_product_attention(queries, *decoded, is_causal=True, enable_gqa=True)

    first = seconds_of(decode_first, repeats)
    for shape in shapes:
        prefill = GpuPrefill(codec, codec)
        prefill._attend.shape = shape
        row = {"codec": name, "tokens": keys.shape[2], "shape": shape, "decode_first_seconds": first, "problem": None}
        out, lse = torch.empty_like(queries), torch.empty(queries.shape[:-1], device="cuda")
        try:
            row["seconds"] = seconds_of(
                functools.partial(prefill, queries, *blocks, scale=scale, out=out, lse=lse), repeats
            )
            row["relative_error"] = sample_error(out, queries, *exact, scale)
        except Exception as failure:  # other layouts and codecs can be measured all the same
            row["problem"] = f"{type(failure).__name__}: {failure}"
        yield row


def measure(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    import torch

    from turbocode.kernels.attention.prefill_cuda import PrefillShape

    torch.manual_seed(0)
    d = args.head_dim
    shapes: list[Any] = [None, *(PrefillShape(*map(int, shape.split(","))) for shape in args.shape or ())]
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": []}
    for n_tokens in args.tokens or TOKENS:
        queries = torch.randn(1, args.heads, n_tokens, d, device="cuda", dtype=torch.float16)
        keys, values = torch.randn(2, 1, args.kv_heads, n_tokens, d, device="cuda", dtype=torch.float16)
        n_operations = 2 * args.heads * d * n_tokens * (n_tokens + 1)
        float16 = float16_times(queries, keys, values, args.repeats)
        best = min((s for s in float16.values() if isinstance(s, float)), default=float("nan"))
        print(f"{n_tokens} tokens: float16 {float16}, {n_operations / best / 1e12:.0f} TFLOP/s", flush=True)
        for name in args.codec or CODECS:
            for row in codec_times(name, queries, keys, values, shapes, args.repeats):
                label = f"  {name:12s} {'' if row['shape'] is None else tuple(row['shape'])}"
                if row["problem"]:
                    print(label, row["problem"], flush=True)
                else:
                    row["tflop_per_s"] = n_operations / row["seconds"] / 1e12
                    row["ratio_to_float16"] = best / row["seconds"]
                    print(
                        f"{label} {1e6 * row['seconds']:.0f} us {row['tflop_per_s']:.0f} TFLOP/s "
                        f"{row['ratio_to_float16']:.2f}x of float16, decoding first "
                        f"{1e6 * row['decode_first_seconds']:.0f} us, error {row['relative_error']:.1e}",
                        flush=True,
                    )
                result["rows"].append({**row, "float16_seconds": float16})
        part = args.file.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(args.file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--codec", action="append")
    parser.add_argument("--tokens", action="append", type=int)
    parser.add_argument("--shape", action="append", help="a layout of the kernel to time beside the one it chooses")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
