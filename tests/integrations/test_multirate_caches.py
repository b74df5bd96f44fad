"""Models whose caches are coded by multirate codecs: every way through the model meets the same cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache_modes import check_every_way
from helpers.tiny_models import some_tokens, tiny_model

from turbocode.codecs import multirate_codec
from turbocode.dumps import DumpMetadata, create_calibration
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.policies import CachePolicy, read_recipe

CONTEXT, HEADS, DIM = 24, 2, 32


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Random bases, whose channels vary as those of random keys would."""
    about = DumpMetadata("float16", 2, 4, HEADS, DIM, DIM**-0.5, 0.0)
    rng = np.random.default_rng(3)
    with create_calibration(tmp_path / "c.h5", about, provenance={}, dump_sha256="0" * 64) as writer:
        for layer in ("000", "001"):
            for side, law in (("keys", "whitened"), ("values", "energy")):
                basis = np.stack([np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] for _ in range(HEADS)])
                mean = 0.3 * rng.standard_normal((HEADS, DIM))
                sigma = np.full((HEADS, DIM), 0.5)
                codec = multirate_codec(basis, mean, sigma, [6, 6, 6, 5], law)
                writer.write(layer, side, "multirate", *codec.calibration_entry())
    (tmp_path / "r.yaml").write_text("{k: multirate, v: multirate, calibration: c.h5}")
    return read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_way_meets_the_same_cache(family: str, recipe: Any) -> None:
    """gemma2 has a softcap and a window; sinks are a piece of the cache in another basis."""
    check_every_way(family, CachePolicy(recipe, sinks=3), CONTEXT, 0.1, 2e-3)


def test_bits_are_those_of_blocks_and_constants(recipe: Any) -> None:
    model = tiny_model("llama")
    tokens, policies = some_tokens(CONTEXT)[None], [CachePolicy(recipe)]
    rows = evaluate_policies(model, tokens, policies, EvaluationMode(), max_memory=1 << 30)["codecs"]
    constants = 8 * (HEADS * (DIM * DIM + 4 * 4 * DIM) + DIM // 8 + 8) / (32768 * HEADS * DIM)
    assert rows[0]["bits_per_value"] == pytest.approx(8 * 24 / DIM + constants, rel=1e-6)
