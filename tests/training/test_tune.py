"""Tuned recipes: they spend what was asked for, cost less than equal shares, and read back to the same codecs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from turbocode.dumps import SynthesisSpec, open_dump, read_calibration, synthesize
from turbocode.errors import OptionError
from turbocode.policies import read_recipe, resolve_coder
from turbocode.policies.recipe import recipe_text
from turbocode.training.tune import joint_digest, tune_codecs, tune_multirate

SPEC = SynthesisSpec(n_layers=2, n_tokens=256, n_query_heads=4, head_dim=32, n_rows=16, outlier_channels=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("dumps") / "dump.h5"
    synthesize(found, SPEC)
    return found


def test_the_recipe_gives_the_codecs_back(path: Path, tmp_path: Path) -> None:
    with open_dump(path) as dump:
        tuned = tune_multirate([dump, dump], 3.0)
        calibration = tuned.write([dump, dump], 3.0, tmp_path / "tuned.yaml")
        digest = dump.content_sha256()
    assert np.mean([side.bits_per_value for side in tuned.sides]) == pytest.approx(3.0, abs=8 / (4 * 32))
    assert np.mean([side.bits_per_value for side in tuned.sides]) <= 3.0
    assert all(side.measured == pytest.approx(side.predicted, rel=0.25) for side in tuned.sides)
    stored = read_calibration(calibration)
    assert stored.dump_sha256 == joint_digest([digest, digest]) != digest
    assert [one["sha256"] for one in stored.provenance["dumps"]] == [digest, digest]
    recipe = read_recipe(tmp_path / "tuned.yaml")
    vectors = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    for (number, side), codec in tuned.codecs.items():
        again = resolve_coder(recipe, number, side, 32, 2)
        np.testing.assert_array_equal(again.encode(vectors, 1)[0], codec.encode(vectors, 1)[0])
        blocks = codec.encode(vectors, 0)[0]
        np.testing.assert_array_equal(again.decode(blocks, 0), codec.decode(blocks, 0))


def test_more_bits_cost_less_and_bits_out_of_range_are_refused(path: Path) -> None:
    with open_dump(path) as dump:
        costs = [sum(side.measured for side in tune_multirate([dump], bits).sides) for bits in (1.5, 2.5, 4.0)]
        assert costs[0] > 3 * costs[1] > 9 * costs[2]
        for bits in (0.5, 12.0):
            with pytest.raises(OptionError, match="are possible at head_dim 32"):
                tune_multirate([dump], bits)


def test_codecs_of_a_list(path: Path) -> None:
    with open_dump(path) as dump:
        kind, sides, recipe = tune_codecs([dump], 3.3, ["turbo2", "turbo3", "turbo4", "q8_0"])
        _, equal, _ = tune_codecs([dump], 3.6, ["turbo3"])
        with pytest.raises(OptionError, match="smallest choices"):
            tune_codecs([dump], 2.0, ["turbo2", "turbo3"])
    assert kind == "queries" and np.mean([side.bits_per_value for side in sides]) <= 3.3
    chosen = {side.codec for side in sides}
    assert len(chosen) > 1
    for side in sides:
        assert str(recipe.codec_for(int(side.layer), side.side)) == side.codec
    assert {side.codec for side in equal} == {"turbo3"} and "layers" not in recipe_text(recipe).partition("k:")[0]


def test_heads_by_themselves_cost_no_more(path: Path) -> None:
    """More freedom at the same bits: the hull of a sum lies above the sum of hulls, up to the last step that fits."""
    with open_dump(path) as dump:
        found = {
            is_on: tune_codecs([dump], 3.4, ["turbo2", "turbo3", "turbo4"], per_head=is_on) for is_on in (False, True)
        }
    costs = {is_on: sum(side.measured for side in sides) for is_on, (_, sides, _) in found.items()}
    _, sides, recipe = found[True]
    assert costs[True] <= costs[False] and np.mean([side.bits_per_value for side in sides]) <= 3.4
    assert len(sides) == 2 * 2 * 2 and any(choice.heads for choice in recipe.layers.values())
    for side in sides:
        assert str(recipe.codec_for(int(side.layer), side.side, side.head)) == side.codec


def test_a_budget_goes_where_it_helps(path: Path) -> None:
    with open_dump(path) as dump:
        _, spread, _ = tune_codecs([dump], 3.5, ["turbo2", "turbo3", "turbo4"])
        _, same, _ = tune_codecs([dump], 3.5, ["turbo3"])
    assert np.mean([side.bits_per_value for side in spread]) <= np.mean([side.bits_per_value for side in same]) + 1e-9
    assert sum(side.measured for side in spread) <= sum(side.measured for side in same) * 1.0001
