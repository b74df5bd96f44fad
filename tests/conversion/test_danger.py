"""Keys with an extreme constant part: what coding them plainly does, that quantize says so, and what helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from turbocode.conversion import dangerous_keys, plan_quantize
from turbocode.dumps import SynthesisSpec, open_dump, synthesize
from turbocode.evaluation.attention_compare import EncodedNow, compare_attention
from turbocode.policies import Recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms
from turbocode_cli.main import run

MEMORY = 1 << 28
SHAPE = {"n_layers": 2, "n_tokens": 600, "n_query_heads": 4, "head_dim": 64, "n_rows": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("danger")
    synthesize(found / "sound.h5", SynthesisSpec(**SHAPE))
    synthesize(found / "biased.h5", SynthesisSpec(**SHAPE, key_bias=30.0))
    with open_dump(found / "biased.h5") as dump:  # fitted on half of the tokens, scored by rows that see the rest too
        calibrate_dump(dump, found / "means.h5", {"keys": [parse_transforms("mean")]}, stop=300)
    return found


def compared(path: Path, recipe: Recipe) -> dict[str, Any]:
    with open_dump(path) as dump:
        return compare_attention(dump, EncodedNow(plan_quantize(dump, recipe)), max_memory=MEMORY)["total"]


@pytest.mark.parametrize("codec", ["turbo3", "trellis3", "q4_0"])
def test_taking_the_mean_away_rescues_extreme_keys(codec: str, folder: Path) -> None:
    plain = Recipe(k=codec, v="q8_0")
    rescued = Recipe(k=codec, v="q8_0", calibration=str(folder / "means.h5"), transforms={"k": ["mean"]})
    sound, ruined, saved = (
        compared(folder / name, recipe)
        for name, recipe in (("sound.h5", plain), ("biased.h5", plain), ("biased.h5", rescued))
    )
    assert ruined["logit_error"] > 10 * sound["logit_error"] and ruined["kl_mean"] > 1
    assert saved["logit_error"] < 1.2 * sound["logit_error"]
    assert saved["kl_mean"] < 2 * sound["kl_mean"]


def test_dangers_are_measured(folder: Path) -> None:
    with open_dump(folder / "biased.h5") as dump:
        first, second = dangerous_keys(dump, plan_quantize(dump, Recipe(k="turbo3", v="turbo3")))
        assert first.loss >= second.loss > 4 and first.constant == pytest.approx(30, rel=0.1)
        assert not dangerous_keys(dump, plan_quantize(dump, Recipe(k="f16", v="turbo3")))
        safe = Recipe(calibration=str(folder / "means.h5"), transforms={"k": ["mean"]})
        assert not dangerous_keys(dump, plan_quantize(dump, safe))
    with open_dump(folder / "sound.h5") as dump:
        assert not dangerous_keys(dump, plan_quantize(dump, Recipe(k="trellis1", v="trellis1")))


def test_quantize_warns_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str], tiny_pride: Path) -> None:
    biased = ["quantize", str(folder / "biased.h5"), "-o", str(folder / "q.h5"), "--device", "cpu", "--json", "--force"]
    assert run([*biased, "--k", "turbo3", "--v", "turbo3"]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("warning")]
    assert "keys of layer" in line and "(2 of 2 layers are so)" in line and "--k mean" in line
    assert [row["layer"] for row in json.loads(out)["dangerous_keys"]] in (["000", "001"], ["001", "000"])
    assert run([*biased, "--k", "turbo3", "--v", "turbo3", "--quiet"]) == 0
    assert not capsys.readouterr().err
    assert run(["quantize", str(tiny_pride), "-o", str(folder / "t.h5"), "--k", "turbo2", "--v", "turbo2"]) == 0
    assert "warning" not in capsys.readouterr().err
