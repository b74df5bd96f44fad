"""Run by test_packed_on_gpu.py in a process whose GPU is the simulator: a model attends by the kernels of the GPU."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.tiny_models import some_tokens, tiny_model, torch, transformers

from turbocode.codecs import make_codec, multirate_codec
from turbocode.dumps import DumpMetadata, create_calibration
from turbocode.errors import DataError, OptionError
from turbocode.integrations import coded_side, packed_attention
from turbocode.integrations.coded_side import CodedSide
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_cache import coded_layers
from turbocode.kernels.attention import cuda, prefill_cuda
from turbocode.policies import CachePolicy, Recipe


def hidden(policy: CachePolicy, on_gpu: bool, family: str = "gemma2", n_layers: int = 2, chunk: int = 7) -> object:
    """Hidden states of a model, gemma2 with a window, of its last chunk, attended by the packed kernels."""
    packed_attention.uses_gpu = coded_side.is_on_gpu = lambda tensor: on_gpu
    model = tiny_model(family, num_hidden_layers=n_layers)
    layers = coded_layers(model.config, policy, holds_blocks=True, reads=False)
    cache = transformers.Cache(layers=layers)
    with attention_by(model.model, packed_attention.attend_packed(cache)):
        return model.hidden(some_tokens(chunk + 1), cache, chunk=chunk, first=0)


cuda.SHAPES = cuda.WIDE_SHAPES = (cuda.Shape(1, 1, 2),)  # few threads to simulate
prefill_cuda.SHAPES = (prefill_cuda.PrefillShape(16, 1, 1),)
x = torch.randn(1, 2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float16)
sides = []
for on_gpu in (False, True):
    coded_side.is_on_gpu = lambda tensor, on_gpu=on_gpu: on_gpu
    side = CodedSide(make_codec("turbo3", 32), 1, 0, holds_blocks=True)
    side.append(x[:, :, :3])
    side.append(x[:, :, 3:])
    sides.append((side.packed_parts()[1][1], side.read()))
assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True))
try:
    side.append(x * float("nan"))
    raise AssertionError("a NaN was stored")
except DataError:
    pass

policy = CachePolicy.of("turbo4", "turbo3", sinks=2, residual=3)
expected, found = (hidden(policy, on_gpu).double() for on_gpu in (False, True))
error = float((found - expected).norm() / expected.norm())
print(f"{error:.1e}")
assert torch.isfinite(found).all() and 1e-9 < error < 1e-3

prefilled = []
plain = prefill_cuda.PrefillAttention.__call__
prefill_cuda.PrefillAttention.__call__ = lambda self, queries, *rest, **options: (
    prefilled.append((self.keys.block_format.name, queries.shape[2])) or plain(self, queries, *rest, **options)
)
expected, found = (hidden(policy, on_gpu, chunk=9).double() for on_gpu in (False, True))
error = float((found - expected).norm() / expected.norm())
print(f"prompt {error:.1e}")
assert torch.isfinite(found).all() and 1e-9 < error < 1e-3
# Nine rows at once in both layers: the first tokens, the packed ones and the latest ones.
assert len(prefilled) == 6 and {rows for _, rows in prefilled} == {9} and len({name for name, _ in prefilled}) == 2
prefill_cuda.PrefillAttention.__call__ = plain


def multirate_policy(folder: str) -> CachePolicy:
    """Keys and values of both layers coded in random bases, keys with a mean that matters beside the exact sinks."""
    rng, about = np.random.default_rng(3), DumpMetadata("float16", 2, 4, 2, 32, 32**-0.5, 0.0)
    with create_calibration(f"{folder}/c.h5", about, provenance={}, dump_sha256="0" * 64) as writer:
        for layer in ("000", "001"):
            for kind, law in (("keys", "whitened"), ("values", "energy")):
                basis = np.stack([np.linalg.qr(rng.standard_normal((32, 32)))[0] for _ in range(2)])
                mean, sigma = rng.standard_normal((2, 32)), np.full((2, 32), 0.5)
                codec = multirate_codec(basis, mean, sigma, [5, 4, 3, 2], law)
                writer.write(layer, kind, "multirate", *codec.calibration_entry())
    recipe = Recipe(k="multirate", v="multirate", calibration=f"{folder}/c.h5")
    return CachePolicy(recipe, sinks=2, residual=3)


with tempfile.TemporaryDirectory() as folder:
    multirate = multirate_policy(folder)
    # One layer: in a second one some vector, a little different, may be coded otherwise.
    expected, found = (hidden(multirate, on_gpu, "llama", 1).double() for on_gpu in (False, True))
    error = float((found - expected).norm() / expected.norm())
    print(f"multirate {error:.1e}")
    assert torch.isfinite(found).all() and 1e-9 < error < 1e-3
    try:
        hidden(multirate, True, "gemma2")
        raise AssertionError("a softcap was ignored")
    except OptionError:
        pass
