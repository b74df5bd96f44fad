"""A model that attends to packed blocks by the GPU's kernels: in the simulator, and on a GPU over 256 tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_models import some_tokens, tiny_model, torch, transformers

from turbocode.codecs.gpu_prefill import GpuPrefill
from turbocode.evaluation.environment import cuda_problem
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_cache import coded_layers
from turbocode.integrations.packed_attention import attend_packed
from turbocode.policies import CachePolicy

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("simulated_packed_attention.py")
ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}"),
]


def test_the_path_over_the_gpu_in_the_simulator() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]


def generate(model: Any, cache: Any, prompt: Any, n_new: int) -> Any:
    word = model._cache_keyword
    return model.model.generate(prompt, max_new_tokens=n_new, do_sample=False, pad_token_id=0, **{word: cache})


def packed_and_decoded(device: str, policy: CachePolicy, n_new: int) -> tuple[Any, Any]:
    """Tokens that a tiny model writes attending to the blocks, and attending to the values that they decode to."""
    model = tiny_model("llama", head_dim=128, max_position_embeddings=512)
    model.model.to(device)
    # After these the two best words are always 0.02 standard deviations of the logits apart: rounding is harmless.
    prompt = torch.from_numpy(some_tokens(8, seed=4))[None].to(device)
    packed = transformers.Cache(layers=coded_layers(model.config, policy, reads=False))
    with attention_by(model.model, attend_packed(packed)):
        found = generate(model, packed, prompt, n_new)
    plain = transformers.Cache(layers=coded_layers(model.config, policy, holds_blocks=False))
    return found, generate(model, plain, prompt, n_new)


@pytest.mark.parametrize("options", [{}, {"sinks": 2, "residual": 5}], ids=str)
@pytest.mark.parametrize(("device", "n_new"), [("cpu", 24), pytest.param("cuda", 256, marks=ON_A_GPU)])
def test_blocks_generate_what_decoded_values_do(device: str, n_new: int, options: dict[str, int]) -> None:
    found, expected = packed_and_decoded(device, CachePolicy.of("turbo4", "turbo3", **options), n_new)
    assert found.shape == (1, 8 + n_new) and torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_problem() is not None, reason=f"no GPU: {cuda_problem()}")
@pytest.mark.parametrize("options", [{}, {"sinks": 2, "residual": 5}], ids=str)
def test_a_long_prompt_is_attended_by_prefill(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of its last tokens, beside those of attention over the values that the blocks decode to."""
    n, policy = 6000, CachePolicy.of("turbo4", "turbo3", **options)
    model = tiny_model("llama", head_dim=128, max_position_embeddings=n)
    model.model.to("cuda")
    packed = transformers.Cache(layers=coded_layers(model.config, policy, reads=False))
    n_rows, prefill = [], GpuPrefill.__call__

    def counted(self: GpuPrefill, queries: Any, *arguments: Any, **more: Any) -> Any:
        n_rows.append(queries.shape[2])
        return prefill(self, queries, *arguments, **more)

    monkeypatch.setattr(GpuPrefill, "__call__", counted)
    with attention_by(model.model, attend_packed(packed)):
        found = model.hidden(some_tokens(n), packed, first=n - 100).double()
    assert len(n_rows) == len(packed.layers) * (3 if options else 1) and set(n_rows) == {n}
    plain = transformers.Cache(layers=coded_layers(model.config, policy, holds_blocks=False))
    expected = model.hidden(some_tokens(n), plain, first=n - 100).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-2
