"""Random models of many architectures, small enough to run in milliseconds; nothing is downloaded.

Importing this module skips the tests of whoever imports it where torch or transformers is missing.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REASON = "needs the extra hf (torch and transformers)"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
torch.set_num_threads(1)  # pytest runs a process on each core

from turbocode.integrations import hf_cache  # noqa: E402
from turbocode.integrations.hf_model import LanguageModel  # noqa: E402

VOCABULARY = 97
WINDOW = 6
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": None,
}
KINDS = ["full_attention", "sliding_attention"]
# Name of the config class, and what differs from SHAPE.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        {
            "sliding_window": WINDOW,
            "layer_types": KINDS,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": WINDOW, "layer_types": KINDS}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": []},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "sliding_window": WINDOW,
            "layer_types": KINDS,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "full_attention"], "conv_L_cache": 3},
    ),
}
CROP_ONLY_REMOVES = hf_cache._CROP_ONLY_REMOVES
MASK_BY_LENGTH = "query_length" in inspect.signature(transformers.Cache.get_mask_sizes).parameters
IF_NEW = pytest.mark.skipif(
    not CROP_ONLY_REMOVES, reason="older transformers give hybrid models caches of their own, or run chunks wrongly"
)
HYBRIDS = ("lfm2",)
WITH_SINKS = "gpt_oss"  # its softmax counts a learned logit, so that nothing here computes its attention again
EVERY_FAMILY = [pytest.param(name, marks=IF_NEW if name in HYBRIDS else ()) for name in FAMILIES if name != WITH_SINKS]


def tiny_model(family: str, *, dtype: Any = torch.float32, **changes: Any) -> LanguageModel:
    """A LanguageModel of random weights, the same every time, whose keys are large enough for coding to matter."""
    name, options = FAMILIES[family]
    config = getattr(transformers, name)(**{**SHAPE, **options, **changes})
    torch.manual_seed(0)
    eager = {"attn_implementation": "eager"} if options.get("attn_logit_softcapping") else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **eager).eval().to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0 if "embed" not in parameter_name else 30.0)
    return LanguageModel(family, model)


def some_tokens(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Token ids int64 (n,)."""
    return np.random.default_rng(seed).integers(1, VOCABULARY, n)


def save_model(family: str, folder: Path) -> Path:
    """A folder in Hugging Face layout: a tiny model with a tokenizer of single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tiny_model(family).model.save_pretrained(folder)
    words = {chr(code): code - 32 for code in range(32, 32 + VOCABULARY - 1)} | {"\n": VOCABULARY - 1}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder
