"""Models whose caches are coded behind transforms: every way through the model meets the same cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache_modes import check_every_way
from helpers.tiny_models import some_tokens, tiny_model

from turbocode.dumps import DumpMetadata, create_calibration
from turbocode.errors import OptionError
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.policies import CachePolicy, read_recipe

CONTEXT, HEADS, DIM = 24, 2, 32


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Shifts of random direction, a few times as large as keys and values are."""
    about = DumpMetadata("float16", 2, 4, HEADS, DIM, DIM**-0.5, 0.0)
    rng = np.random.default_rng(3)
    with create_calibration(tmp_path / "shift.h5", about, provenance={}, dump_sha256="0" * 64) as writer:
        for layer in ("000", "001"):
            for side in ("keys", "values"):
                shift = rng.standard_normal((HEADS, DIM)).astype(np.float16)
                writer.write(layer, side, "mean", {}, {"mean": shift})
    (tmp_path / "r.yaml").write_text("{k: q8_0, v: q8_0, calibration: shift.h5, transforms: {k: [mean], v: [mean]}}")
    return read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_way_meets_the_same_cache(family: str, recipe: Any) -> None:
    """gemma2 has a softcap and a window; sinks are a piece of the cache that no shift was taken from."""
    check_every_way(family, CachePolicy(recipe, sinks=3), CONTEXT, 0.05, 1e-3)  # q8_0 of what the shifts make larger


def test_constants_are_counted(recipe: Any) -> None:
    model = tiny_model("llama")
    rows = evaluate_policies(
        model,
        some_tokens(CONTEXT)[None],
        [CachePolicy(recipe), CachePolicy.of("q8_0", "q8_0")],
        EvaluationMode(),
        max_memory=1 << 30,
    )["codecs"]
    assert rows[0]["bits_per_value"] - rows[1]["bits_per_value"] == pytest.approx(16 / 32768)


def test_a_calibration_of_another_shape_is_refused(recipe: Any) -> None:
    policy = CachePolicy(recipe)
    with pytest.raises(OptionError, match="2 KV heads of 32 values; these are 4 of 64"):
        policy.codec_for(0, "keys", 64, 4)
