"""Every way through the model meets the coded cache: each agrees with attention over decoded values, computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import EVERY_FAMILY, VOCABULARY, WITH_SINKS, some_tokens, tiny_model, torch, transformers

from turbocode.codecs import make_codec
from turbocode.errors import OptionError
from turbocode.evaluation import model_evaluation
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.evaluation.plots import plot_error_by_position
from turbocode.evaluation.token_divergence import ROW_BYTES
from turbocode.integrations.hf_attention import attention_by
from turbocode.integrations.hf_model import LanguageModel
from turbocode.kernels.attention.reference import logits as attention_logits
from turbocode.policies import EXACT_CACHE, CachePolicy, Recipe

CONTEXT = 24
MODES = [
    EvaluationMode(),
    EvaluationMode(chunk=5),
    EvaluationMode(chunk=1),
    EvaluationMode(packed=True),
    EvaluationMode(chunk=5, packed=True),
    EvaluationMode(chunk=1, packed=True),
]
MEMORY = 1 << 30


def windows(n: int = 1) -> Any:
    return some_tokens(n * CONTEXT).reshape(n, CONTEXT)


def evaluate(model: LanguageModel, policies: list[CachePolicy], mode: EvaluationMode, n: int = 1) -> dict[str, Any]:
    return evaluate_policies(model, windows(n), policies, mode, max_memory=MEMORY)


def reference_logits(model: LanguageModel, window: Any, k: str, v: str, sinks: int = 0, residual: int = 0) -> Any:
    """Logits (context, words) of a model whose attention decodes, in NumPy and one token after the other.

    Row i sees the token j exactly if j is among the sinks or the latest `residual` ones at i, else its decoded self.
    """

    def attend(call: Any) -> Any:
        exact = {"k": call.keys.numpy(), "v": call.values.numpy()}
        coded, kept = {}, {}
        for side, name in (("k", k), ("v", v)):
            codec = make_codec(name, exact[side].shape[-1])
            coded[side] = codec.decode(codec.encode(exact[side])[0])
            kept[side] = exact[side].astype(np.float16)
            # What leaves the residual is encoded from its 16 bits.
            if residual:
                coded[side] = codec.decode(codec.encode(kept[side])[0])
        n, groups = exact["k"].shape[2], call.queries.shape[1] // exact["k"].shape[1]
        rows = []
        for i in range(n):
            is_exact = (np.arange(n) < sinks) | (np.arange(n) > i - residual)
            seen = {side: np.where(is_exact[:, None], kept[side], coded[side]) for side in ("k", "v")}
            s = attention_logits(
                call.queries.numpy()[:, :, i : i + 1], seen["k"], np.array([[i]]), call.scale, call.window, call.softcap
            )
            p = np.exp(s - s.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            rows.append(p @ np.repeat(seen["v"], groups, axis=1).astype(np.float64))
        output = np.concatenate(rows, axis=2).astype(np.float32)
        return torch.from_numpy(output).transpose(1, 2), None

    with attention_by(model.model, attend):
        states = model.hidden(window, transformers.DynamicCache(config=model.config))
    return model.logits(states)


def logits_of(model: LanguageModel, policy: CachePolicy, mode: EvaluationMode) -> Any:
    """Logits (context - 1, words) as `evaluate_policies` gets them."""
    states, _ = model_evaluation._run(model, windows()[0], policy, mode, 0)
    return model.logits(states)


def distance(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b - b.mean(axis=1, keepdims=True)).max())


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_mode_meets_the_coded_cache(family: str) -> None:
    model, policy = tiny_model(family), CachePolicy.of("turbo3", "turbo2")
    expected = reference_logits(model, windows()[0], "turbo3", "turbo2")[:-1]
    exact = logits_of(model, EXACT_CACHE, EvaluationMode())
    # The very first token attends to itself alone, and to its decoded self: a fresh token is never met exactly.
    assert distance(exact[:1], expected[:1]) > 0.01 and distance(exact, expected) > 0.05
    for mode in MODES:
        assert distance(logits_of(model, policy, mode), expected) < 1e-3, mode


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("sinks", "residual"), [(3, 0), (0, 4), (3, 4)])
def test_sinks_and_residual_are_met_exactly(sinks: int, residual: int, packed: bool) -> None:
    model = tiny_model("llama")
    policy = CachePolicy.of("turbo3", "turbo2", sinks=sinks, residual=residual)
    expected = reference_logits(model, windows()[0], "turbo3", "turbo2", sinks, residual)[:-1]
    assert distance(logits_of(model, policy, EvaluationMode(chunk=1, packed=packed)), expected) < 1e-3
    plain = logits_of(model, CachePolicy.of("turbo3", "turbo2"), EvaluationMode(chunk=1, packed=packed))
    assert distance(plain, expected) > 0.02


@pytest.mark.parametrize("packed", [False, True])
def test_windows_forget_sinks_too(packed: bool) -> None:
    model = tiny_model("mistral")
    policy = CachePolicy.of("turbo3", "turbo2", sinks=3, residual=2)
    expected = reference_logits(model, windows()[0], "turbo3", "turbo2", 3, 2)[:-1]
    assert distance(logits_of(model, policy, EvaluationMode(chunk=1, packed=packed)), expected) < 1e-3


@pytest.mark.parametrize("mode", MODES[:3], ids=str)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_exact_cache_differs_by_exactly_nothing(family: str, mode: EvaluationMode) -> None:
    row = evaluate(tiny_model(family), [CachePolicy.of("exact", "exact")], mode)["codecs"][0]
    assert {row[key] for key in row if key.startswith(("kl_", "delta_p"))} == {0.0}
    assert row["same_top"] == row["ppl_ratio"] == 1.0 and row["bits_per_value"] == 32.0


def test_learned_sinks_stay_in_the_models_own_attention() -> None:
    model, coded = tiny_model(WITH_SINKS), CachePolicy.of("turbo3", "turbo2")
    rows = [evaluate(model, [EXACT_CACHE, coded], mode)["codecs"] for mode in MODES[:3]]
    assert all(exact["kl_max"] == 0.0 for exact, _ in rows)
    assert all(row["kl_mean"] == pytest.approx(rows[0][1]["kl_mean"], rel=1e-3) for _, row in rows)
    with pytest.raises(OptionError, match="learned sinks"):
        evaluate(model, [coded], EvaluationMode(packed=True))


def test_float16_is_exact_where_the_model_computes_in_it() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    row = evaluate(model, [CachePolicy.of("f16", "f16")], EvaluationMode(chunk=7))["codecs"][0]
    assert row["kl_max"] == 0.0 and row["bits_per_value"] == 16.0
    row = evaluate(tiny_model("llama"), [CachePolicy.of("f16", "f16")], EvaluationMode())["codecs"][0]
    assert 0 < row["kl_mean"] < 1e-4  # in float32 it rounds


def test_figures_come_from_the_logits_of_both_runs() -> None:
    model, policy = tiny_model("qwen2"), CachePolicy.of("turbo3", "turbo2")
    row = evaluate(model, [policy], EvaluationMode())["codecs"][0]
    p, q = (
        torch.log_softmax(torch.from_numpy(logits_of(model, a, EvaluationMode())[CONTEXT // 2 :]).double(), -1).numpy()
        for a in (EXACT_CACHE, policy)
    )
    targets = windows()[0][CONTEXT // 2 + 1 :]
    assert row["n_tokens"] == len(targets) == CONTEXT // 2 - 1
    assert row["kl_mean"] == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-5)
    assert row["ppl"] == pytest.approx(np.exp(-q[np.arange(len(targets)), targets].mean()), rel=1e-5)


def test_one_exact_run_serves_all_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = model_evaluation._run
    monkeypatch.setattr(
        model_evaluation, "_run", lambda m, w, p, *rest: runs.append(p.name) or original(m, w, p, *rest)
    )
    names = ["turbo4", "exact / turbo2", "turbo3 / exact"]
    policies = [CachePolicy.of(*(name.split(" / ") * 2)[:2]) for name in names]
    steps: list[int] = []
    result = evaluate_policies(
        tiny_model("llama"), windows(2), policies, EvaluationMode(), max_memory=MEMORY, advance=steps.append
    )
    assert runs == ["exact", *names] * 2 and sum(steps) == 8
    assert [row["name"] for row in result["codecs"]] == names
    alone = evaluate(tiny_model("llama"), [policies[1]], EvaluationMode(), 2)["codecs"][0]
    shared = result["codecs"][1]
    assert {key: alone[key] for key in alone if key != "seconds"} == {k: shared[k] for k in alone if k != "seconds"}
    assert alone["n_tokens"] == 2 * (CONTEXT // 2 - 1)


def test_little_memory_gives_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    model, policies = tiny_model("gemma2"), [CachePolicy.of("turbo3", "turbo3")]
    whole = evaluate(model, policies, EvaluationMode(first=0))["codecs"][0]
    monkeypatch.setattr(model_evaluation, "block_rows", lambda n_words, max_memory: 2)
    parts = evaluate(model, policies, EvaluationMode(first=0))["codecs"][0]
    assert whole["n_tokens"] == parts["n_tokens"] == CONTEXT - 1
    assert parts["kl_mean"] == pytest.approx(whole["kl_mean"], rel=1e-4)
    assert parts["ppl"] == pytest.approx(whole["ppl"], rel=1e-5)


def test_a_recipe_chooses_per_layer_and_bits_are_counted() -> None:
    recipe = Recipe(k="turbo4", v="turbo2", layers={"1": {"k": "f16", "v": "f16"}})
    row = evaluate(tiny_model("llama"), [CachePolicy(recipe, name="mixed")], EvaluationMode())["codecs"][0]
    bits = [make_codec(name, 32).bits_per_value for name in ("turbo4", "turbo2", "f16", "f16")]
    assert row["name"] == "mixed" and row["bits_per_value"] == pytest.approx(np.mean(bits))


@pytest.mark.parametrize(
    ("policy", "mode", "word"),
    [
        (CachePolicy.of("turbo3", "turbo3", residual=4), EvaluationMode(), "--chunk 1"),
        (CachePolicy.of("turbo3", "exact"), EvaluationMode(packed=True), "exact values have none"),
        (CachePolicy(Recipe(layers={"2": {"k": "f16"}})), EvaluationMode(), "layers 0 to 1"),
        (CachePolicy.of("turbo3_tcq", "turbo3"), EvaluationMode(), "32"),
        (CachePolicy.of("turbo3", "turbo3"), EvaluationMode(chunk=0), "1 and more"),
        (CachePolicy.of("turbo3", "turbo3"), EvaluationMode(first=CONTEXT - 1), "0 to 22"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_work(policy: Any, mode: Any, word: str) -> None:
    with pytest.raises(OptionError) as caught:
        evaluate(tiny_model("llama"), [policy], mode)
    assert word in f"{caught.value} {caught.value.hint}"


def test_too_little_memory_for_hidden_states() -> None:
    with pytest.raises(OptionError, match="hidden states of 5 codecs"):
        evaluate_policies(
            tiny_model("llama"),
            windows(),
            5 * [CachePolicy.of("q8_0", "q8_0")],
            EvaluationMode(),
            max_memory=ROW_BYTES * VOCABULARY,
        )
    with pytest.raises(OptionError, match="no codec"):
        evaluate(tiny_model("llama"), [], EvaluationMode())


def test_a_plot_of_the_errors(tmp_path: Path) -> None:
    result = evaluate(tiny_model("llama"), [CachePolicy.of("turbo3", "turbo3"), EXACT_CACHE], EvaluationMode())
    plot_error_by_position(tmp_path / "errors.png", result)
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
