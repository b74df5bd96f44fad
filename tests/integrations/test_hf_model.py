"""A model behind LanguageModel is the model: its layers as they are, hidden states and logits as it computes them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from helpers.tiny_models import EVERY_FAMILY, FAMILIES, WINDOW, some_tokens, tiny_model, torch, transformers

from turbocode.errors import DataError, DeviceError, NoInputError, OptionError
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_model import LanguageModel, open_model
from turbocode.integrations.hf_packages import check_version

N_TOKENS = 20


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_layers_are_what_the_config_says(family: str) -> None:
    model = tiny_model(family)
    options = FAMILIES[family][1]
    is_gemma2 = family == "gemma2"
    kinds = options.get("layer_types", ["sliding_attention" if "sliding_window" in options else "full_attention"] * 2)
    owners = [index for index, kind in enumerate(kinds) if kind != "conv"]
    assert [shape.layer_index for shape in model.layers] == owners
    for shape in model.layers:
        assert (shape.n_query_heads, shape.n_kv_heads) == (4, 2)
        assert shape.key_dim == shape.value_dim == 32
        assert shape.window == (WINDOW if kinds[shape.layer_index] == "sliding_attention" else 0)
        assert shape.softcap == (2.0 if is_gemma2 else 0.0)
        assert not shape.has_sinks
    if is_gemma2:
        assert model.layers[0].scale == pytest.approx(20**-0.5)


@pytest.mark.parametrize("chunk", [None, 7, 1])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_body_and_head_apart_are_the_model(family: str, chunk: int | None) -> None:
    model, tokens = tiny_model(family), some_tokens(N_TOKENS)
    with torch.inference_mode():
        whole = model.model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]
    cache = transformers.DynamicCache(config=model.config)
    states = model.hidden(tokens, cache, chunk=chunk, first=5)
    assert states.shape[0] == N_TOKENS - 5
    parts = torch.cat([torch.from_numpy(model.logits(states[:4])), torch.from_numpy(model.logits(states[4:]))])
    torch.testing.assert_close(parts, whole[5:], rtol=2e-4, atol=2e-4)
    assert "forward" not in model.model.base_model.__dict__  # the body computes again


def test_a_head_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = type(model.model).forward

    def scaled_by_the_prompt(self: object, *arguments: object, **options: object) -> object:
        outputs = forward(self, *arguments, **options)
        outputs.logits *= options["input_ids"][0, 0] + 1
        return outputs

    monkeypatch.setattr(type(model.model), "forward", scaled_by_the_prompt)
    with pytest.raises(OptionError, match="its head by itself"):
        _ = model.layers


def test_attention_is_put_back() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attention_by(model.model, lambda call: 1 / 0):
        model.hidden(some_tokens(4), transformers.DynamicCache(config=model.config))
    assert model.config._attn_implementation == before
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(OptionError, match="flash_attention_2"), attention_by(model.model, lambda call: call.plain()):
        pass


OTHERS = {
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 50},
    "bert": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_models_are_refused_in_one_line(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **OTHERS[kind])
    with pytest.raises(OptionError) as caught:
        _ = LanguageModel(kind, transformers.AutoModelForCausalLM.from_config(config).eval()).layers
    assert "\n" not in str(caught.value)


def test_attention_that_cannot_be_watched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turbocode.integrations.hf_model.attention_by", lambda model, handler: nullcontext())
    with pytest.raises(OptionError, match=r"does not attend through .* in layer 0"):
        _ = tiny_model("llama").layers


def test_a_model_that_cannot_be_run_is_refused() -> None:
    model = tiny_model("llama")
    model.model.model.layers[1].self_attn.head_dim = 7
    with pytest.raises(DataError, match="cannot be run"):
        _ = model.layers


@pytest.mark.parametrize("version", ["4.57.3", "6.0.0", "odd"])
def test_transformers_that_are_not_supported(version: str) -> None:
    with pytest.raises(DeviceError, match=r"5\.0 to 5\.x") as caught:
        check_version(version)
    assert caught.value.hint == "pip install 'turbocode[hf]'"


def test_models_that_are_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NoInputError, match="neither a folder"):
        open_model("nobody/no-such-model")
    for name in (tmp_path / "none", tmp_path):
        with pytest.raises(NoInputError):
            open_model(str(name))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(DataError, match="cannot be loaded"):
        open_model(str(tmp_path))


def test_damaged_and_missing_weights(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import load_file, save_file

    model = tiny_model("llama").model
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert open_model(str(tmp_path)).label == tmp_path.name
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are missing, model\.layers\.1\.self_attn\.k_proj\.weight"):
        open_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="cannot be loaded"):
        open_model(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), tmp_path / "pytorch_model.bin")  # a pickle could run code
    with pytest.raises(DataError, match="cannot be loaded"):
        open_model(str(tmp_path))
