"""Whether a language model that attends to packed blocks writes what it writes over the decoded values; greedy.

    python tests/benchmarks/generate_packed.py [--model data/lm-tiny] [--device cuda] [--tokens 256] [--codec NAME ...]

Prints for each codec whether all tokens are the same and, where one is not, how near the two best words were there:
float16 products decide between words that are closer than about a thousandth. Needs torch, transformers and, on a GPU,
numba-cuda; of turbocode's other dependencies none.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CODECS = ("turbo4", "turbo3", "turbo2", "trellis3", "turbo3_tcq", "q8_0")
PROMPT = (13, 538, 1289, 265, 199, 7130, 287, 7928)


@dataclass(frozen=True)
class OneCodec:
    """What cache layers ask a policy for: one codec for keys and values, with tokens kept in 16 bits or without."""

    name: str
    sinks: int = 0
    residual: int = 0

    def codec_for(self, number: int, side: str, head_dim: int, n_kv_heads: int) -> Any:
        from turbocode.codecs import make_codec

        return make_codec(self.name, head_dim)


def write(model: Any, policy: OneCodec, n_new: int, *, is_packed: bool) -> tuple[list[int], list[float], float]:
    """(tokens, how far apart the two best words were in standard deviations of the logits, seconds)."""
    from contextlib import nullcontext

    from turbocode.integrations.hf_attention import attention_by
    from turbocode.integrations.hf_cache import TurboLayer
    from turbocode.integrations.hf_packages import torch, transformers
    from turbocode.integrations.packed_attention import attend_packed

    layers = [
        TurboLayer(number, policy, holds_blocks=is_packed, reads=not is_packed) for number in range(len(model.layers))
    ]
    cache = transformers.Cache(layers=layers)
    prompt = torch.tensor([PROMPT], device=model.model.device)
    start = time.perf_counter()
    with attention_by(model.model, attend_packed(cache)) if is_packed else nullcontext():
        found = model.model.generate(
            prompt,
            max_new_tokens=n_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **{model._cache_keyword: cache},
        )
    seconds = time.perf_counter() - start
    logits = torch.stack(found.logits, 1)[0].double()
    best = logits.topk(2).values
    gaps = (best[:, 0] - best[:, 1]) / logits.std(-1)
    return found.sequences[0, len(PROMPT) :].tolist(), gaps.tolist(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "data" / "lm-tiny"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--codec", action="append")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from turbocode.integrations.hf_model import open_model

    model = open_model(args.model, device=args.device)
    for name in args.codec or CODECS:
        for policy in (OneCodec(name), OneCodec(name, 4, 32)):
            packed, _, seconds = write(model, policy, args.tokens, is_packed=True)
            decoded, gaps, plain_seconds = write(model, policy, args.tokens, is_packed=False)
            kept = f"{policy.sinks} first and {policy.residual} latest tokens in 16 bits"
            first = next((i for i, (a, b) in enumerate(zip(packed, decoded, strict=True)) if a != b), None)
            verdict = f"all {args.tokens} tokens are the same"
            if first is not None:
                verdict = f"token {first} differs, where the two best words were {gaps[first]:.1e} apart"
            print(
                f"{name:12s} {kept}: {verdict}; nearest words {min(gaps):.1e} apart; "
                f"{seconds:.1f} s packed, {plain_seconds:.1f} s decoded",
                flush=True,
            )


if __name__ == "__main__":
    main()
