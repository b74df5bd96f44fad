"""The gain on values: flat, by context, and measured on attention; at encode or decode time; the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import TransformedCodec, make_codec
from turbocode.dumps import Dump, open_dump, read_calibration
from turbocode.errors import OptionError
from turbocode.kernels.attention import reference
from turbocode.training.calibrate import calibrate_dump, parse_transforms
from turbocode.transforms import collect_statistics, fit_chain, load_chain


@pytest.fixture
def dump(tiny_pride: Path) -> Any:
    with open_dump(tiny_pride) as found:
        yield found


def coder(dump: Dump, text: str, codec: str) -> TransformedCodec:
    chain = fit_chain(parse_transforms(text), collect_statistics(dump, dump.layers[1], "values"))
    return TransformedCodec(make_codec(codec, 128), chain)


def test_a_flat_gain_scales_what_is_decoded(dump: Dump) -> None:
    values = dump.layers[1].read("values", 0, 0)
    plain = make_codec("turbo3", 128)
    expected = plain.decode(plain.encode(values)[0])
    for option in ("", ",at_encode=1"):
        scaled = coder(dump, f"gain:alpha=1.25{option}", "turbo3")
        found = scaled.decode(scaled.encode(values, 0)[0], 0)
        np.testing.assert_allclose(found, 1.25 * expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    # A mean that was taken away before is added back as it was.
    around = coder(dump, "mean+gain:alpha=1.25", "f16")
    mean = around.chain.steps[0].arrays["mean"][0].astype(np.float32)
    found = around.decode(around.encode(values, 0)[0], 0)
    np.testing.assert_allclose(found - mean, 1.25 * (values.astype(np.float32) - mean), atol=5e-3)


def test_formulas_by_context(dump: Dump) -> None:
    def alpha(text: str) -> float:
        return float(coder(dump, text, "f16").chain.steps[0].about["alpha"])

    assert alpha("gain:context=2048") == pytest.approx(1.1484 - 0.01443 * np.log(2048))
    assert alpha("gain:context=2048,bits=2") == pytest.approx(0.8865 + 0.0195 * np.log(2048))
    assert alpha("gain:context=1000000000") == 0.98 and alpha("gain:context=1") == 1.06


def test_the_measured_gain_is_the_best_one(dump: Dump, tmp_path: Path) -> None:
    found = {}
    for norm in ("unbiased", "mse"):  # which stores shorter norms, by a factor of .885
        codec = f"turbo2:norm={norm}"
        calibrate_dump(dump, tmp_path / f"{norm}.h5", {"values": [parse_transforms(f"gain:codec={codec}")]})
        entry = read_calibration(tmp_path / f"{norm}.h5").entry("001", "values", "gain")
        found[norm] = entry.arrays["decode"][:, 0].astype(float)
    np.testing.assert_allclose(found["mse"] / found["unbiased"], 1 / 0.885, rtol=0.02)
    alphas = found["mse"]
    layer, head = dump.layers[1], 0
    keys, values = (layer.read(side, 0, head).astype(np.float64) for side in ("keys", "values"))
    queries = np.stack([layer.read("queries", 0, h) for h in (0, 1)])[None].astype(np.float64)
    plain = make_codec("turbo2:norm=mse", 128)
    decoded = plain.decode(plain.encode(values)[0]).astype(np.float64)
    outputs = [
        reference.decode_attention(
            queries, keys[None, None], v[None, None], layer.query_positions(), scale=dump.metadata.attention_scale
        )[0]
        for v in (values, decoded)
    ]
    best = (outputs[0] * outputs[1]).sum() / np.square(outputs[1]).sum()
    assert alphas[head] == pytest.approx(best, rel=1e-3)


def test_on_an_exact_cache_the_measured_gain_is_one(dump: Dump, tmp_path: Path) -> None:
    chain = parse_transforms("mean+gain:codec=f16")
    calibrate_dump(dump, tmp_path / "g.h5", {"values": [chain]}, stop=700)
    found = read_calibration(tmp_path / "g.h5")

    def stored(key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        entry = found.entry("002", "values", key)
        return entry.about, entry.arrays

    gain = load_chain(("mean", "gain"), stored, 2, 128).steps[1].arrays["decode"]
    np.testing.assert_allclose(gain, 1, atol=1e-3)


def test_keys_and_dumps_without_a_measure_are_refused(dump: Dump) -> None:
    keys = collect_statistics(dump, dump.layers[0], "keys")
    with pytest.raises(OptionError, match="gain is for values"):
        fit_chain(parse_transforms("gain:alpha=1.1"), keys)
    with pytest.raises(OptionError, match="measured on a dump"):
        coder(dump, "gain:codec=turbo3", "turbo3")
    for text in ("gain:alpha=3", "gain:context=10,bits=4", "gain:measured=1"):
        with pytest.raises(OptionError):
            parse_transforms(text)
