"""Transforms that keep bytes of every token: exact with the identity codec, in files, in caches, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import TransformedCodec, decode_attention, make_codec
from turbocode.conversion import plan_quantize, quantize_dump
from turbocode.dumps import Dump, open_dump, open_quantized
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.attention_compare import EncodedNow, StoredBlocks, compare_attention
from turbocode.evaluation.verification import verify_file
from turbocode.policies import Recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms
from turbocode.transforms import check_chain, collect_statistics, fit_chain

MEMORY = 1 << 28
KEPT = {"lowrank:rank=3": 6, "pattern": 1, "nsn": 2, "mean+lowrank": 8, "mean+pattern:count=256": 1}
KEPT |= {"nsn:run=64": 6, "kvarn": 4, "walsh+kvarn:run=64": 8, "mean+nsn:run=256": 3}


@pytest.fixture(scope="module")
def dump() -> Any:
    with open_dump(Path(__file__).parents[2] / "data" / "tiny-pride.h5") as found:
        yield found


def coder(dump: Dump, text: str, side: str = "keys", codec: str = "turbo3") -> TransformedCodec:
    chain = fit_chain(parse_transforms(text), collect_statistics(dump, dump.layers[1], side))
    return TransformedCodec(make_codec(codec, 128), chain)


@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("text", KEPT)
def test_what_is_kept_and_what_is_coded_make_the_vector(text: str, side: str, dump: Dump) -> None:
    chain = coder(dump, text, side).chain
    x = dump.layers[1].read(side, 0, 1)
    assert chain.token_map is not None
    y = chain.head_map.code(x, 1)
    coded, kept = chain.token_map.split(y.astype(np.float64), 1)
    assert kept.shape == (len(x), KEPT[text])
    found = chain.head_map.restore(chain.token_map.join(coded, kept, 1), 1)
    np.testing.assert_allclose(found, x.astype(np.float32), atol=1e-5 * np.abs(x.astype(np.float32)).max())


@pytest.mark.parametrize("text", KEPT)
def test_blocks_hold_both_and_bits_count_both(text: str, dump: Dump) -> None:
    found = coder(dump, text)
    x = dump.layers[1].read("keys", 0, 1)
    blocks, report = found.encode(x.reshape(2, -1, 128), 1)
    assert blocks.shape == (2, len(x) // 2, 50 + KEPT[text])
    assert found.bits_per_value == pytest.approx(3.125 + 8 * KEPT[text] / 128 + found.constant_bits)
    decoded = found.decode(blocks, 1).reshape(-1, 128)
    exact = x.astype(np.float64)
    assert report.nmse == pytest.approx(np.square(decoded - exact).sum() / np.square(exact).sum())
    plain = make_codec("turbo3", 128).encode(x)[1].nmse
    assert report.nmse < (0.85 if text.startswith("lowrank") else 0.7) * plain  # these keys are half a constant vector
    np.testing.assert_array_equal(found.for_head(1).decode(blocks), found.decode(blocks, 1))


def test_zero_vectors_stay_zero_and_others_are_named(dump: Dump) -> None:
    found = coder(dump, "nsn")
    x = np.zeros((3, 128), np.float32)
    assert not found.decode(found.encode(x, 0)[0], 0).any()
    x[2, 5] = np.nan
    with pytest.raises(DataError, match=r"vector \(2,\)"):
        found.encode(x, 0)


def test_in_files(tmp_path: Path, tiny_pride: Path, dump: Dump) -> None:
    chains = {"keys": [parse_transforms("mean+lowrank")], "values": [parse_transforms("pattern")]}
    calibrate_dump(dump, tmp_path / "fit.h5", chains)
    recipe = Recipe(
        calibration=str(tmp_path / "fit.h5"), transforms={"k": ["mean", "lowrank"], "v": ["pattern"]}, k="turbo2"
    )
    quantize_dump(dump, tmp_path / "q.h5", recipe, max_memory=MEMORY)
    assert verify_file(tmp_path / "q.h5", against=tiny_pride)["ok"]
    with open_quantized(tmp_path / "q.h5") as stored:
        results = [
            compare_attention(dump, source, max_memory=MEMORY)["total"]
            for source in (StoredBlocks(stored, dump), EncodedNow(plan_quantize(dump, recipe)))
        ]
    assert results[0] == results[1] and results[0]["kernel_error"] is None
    assert 0 < results[0]["output_error"] < 0.5


def test_packed_attention_refuses_in_one_line(dump: Dump) -> None:
    found = coder(dump, "pattern")
    blocks = found.encode(dump.layers[1].read("keys", 0, 0), 0)[0][None, None]
    queries = np.zeros((1, 1, 1, 128), np.float32)
    with pytest.raises(OptionError, match="does not read blocks of pattern"):
        decode_attention(queries, found, blocks, found, blocks, np.array([[9]]), scale=1.0)
    with pytest.raises(OptionError, match="to the model's basis"):
        found.decode(blocks, unrotate=False)


def test_they_come_last(dump: Dump) -> None:
    with pytest.raises(OptionError, match="pattern keeps bytes of every token"):
        check_chain(["pattern", "mean"])
    with pytest.raises(OptionError, match="has to be the last"):
        parse_transforms("lowrank+klt")
    for text in ("lowrank:rank=0", "pattern:count=257", "pattern:count=0", "nsn:run=63", "kvarn:run=0"):
        with pytest.raises(OptionError):
            parse_transforms(text)


def test_a_pattern_that_is_not_there_is_damage(dump: Dump) -> None:
    found = coder(dump, "pattern:count=4")
    blocks = found.encode(dump.layers[1].read("keys", 0, 0), 0)[0]
    blocks[3, 0] = 4
    with pytest.raises(DataError, match="names pattern 4; there are 4"):
        found.decode(blocks, 0)


def test_arrays_that_do_not_fit(dump: Dump) -> None:
    for text in ("lowrank", "pattern", "nsn", "kvarn"):
        chain = coder(dump, text).chain
        for arrays in ({}, {key: array[..., :-1] for key, array in chain.steps[0].arrays.items()}):
            with pytest.raises(DataError):
                type(chain)((type(chain.steps[0])(text, {}, arrays),), 2, 128)
