"""Run by test_packed_on_gpu.py in a process whose GPU is the simulator: a model attends by the kernels of the GPU."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.tiny_models import some_tokens, tiny_model, torch, transformers

from turbocode.integrations import packed_attention
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_cache import coded_layers
from turbocode.kernels.attention import cuda
from turbocode.policies import CachePolicy


def hidden(policy: CachePolicy, on_gpu: bool) -> object:
    """Hidden states of a model with a window, of its last chunk, attended by the packed kernels."""
    packed_attention.uses_gpu = lambda queries: on_gpu
    model = tiny_model("gemma2", num_hidden_layers=2)
    layers = coded_layers(model.config, policy, holds_blocks=True, reads=False)
    cache = transformers.Cache(layers=layers)
    with attention_by(model.model, packed_attention.attend_packed(cache)):
        return model.hidden(some_tokens(8), cache, chunk=7, first=0)


cuda.SHAPES = cuda.WIDE_SHAPES = (cuda.Shape(1, 1, 2),)  # few threads to simulate
policy = CachePolicy.of("turbo4", "turbo3", sinks=2, residual=3)
expected, found = (hidden(policy, on_gpu).double() for on_gpu in (False, True))
error = float((found - expected).norm() / expected.norm())
print(f"{error:.1e}")
assert torch.isfinite(found).all() and 1e-9 < error < 1e-3
