"""Every way of a text through a tiny model with a coded cache: all meet the same cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers.tiny_models import some_tokens, tiny_model

from turbocode.evaluation import model_evaluation
from turbocode.evaluation.model_evaluation import EvaluationMode
from turbocode.policies import EXACT_CACHE, CachePolicy


def check_every_way(family: str, policy: CachePolicy, n_tokens: int, most_changed: float, most_apart: float) -> None:
    """Coding changes logits by less than most_changed of their spread; ways differ by less than most_apart of it."""
    model, window = tiny_model(family), some_tokens(n_tokens)

    def logits(chosen: CachePolicy, mode: EvaluationMode) -> Any:
        return model.logits(model_evaluation._run(model, window, chosen, mode, 0)[0])

    exact = logits(EXACT_CACHE, EvaluationMode())
    spread = np.abs(exact - exact.mean(axis=1, keepdims=True)).max()
    expected = logits(policy, EvaluationMode())
    assert 1e-6 < np.abs(expected - exact).max() / spread < most_changed
    for mode in (EvaluationMode(chunk=5), EvaluationMode(packed=True), EvaluationMode(chunk=5, packed=True)):
        assert np.abs(logits(policy, mode) - expected).max() / spread < most_apart, mode
