"""Decode attention on the CPU that leaves out what hardly counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.compare import relative_error
from helpers.skipping import skipping_attention

from turbocode.codecs import decode_attention, make_codec
from turbocode.errors import OptionError
from turbocode.kernels.attention.cpu import TILE_TOKENS
from turbocode.kernels.attention.skipping import Skipping

SKIPPINGS = [Skipping(0.03, 0.0), Skipping(0.0, 0.2), Skipping(0.01, 0.1)]


@pytest.mark.parametrize("skipping", SKIPPINGS)
def test_what_is_left_out_is_what_is_said(skipping: Skipping, rng: np.random.Generator) -> None:
    d, n_tokens = 64, 200
    codec = make_codec("turbo4", d)
    keys, values = rng.standard_normal((2, 1, 1, n_tokens, d)).astype(np.float16)
    queries = (3 * rng.standard_normal((1, 1, 1, d))).astype(np.float32)
    blocks = [codec.encode(x)[0] for x in (keys, values)]
    decoded = [codec.decode(part)[0, 0].astype(np.float64) for part in blocks]
    logits = d**-0.5 * queries[0, 0].astype(np.float64) @ decoded[0].T
    expected, lse, n_left_out = skipping_attention(logits, decoded[1], skipping, TILE_TOKENS)
    last = np.full((1, 1), n_tokens - 1)
    output, found_lse = decode_attention(
        queries, codec, blocks[0], codec, blocks[1], last, scale=d**-0.5, n_splits=1, skipping=skipping
    )
    assert n_left_out > 20
    assert relative_error(output[0, 0], expected) < 1e-5
    np.testing.assert_allclose(found_lse[0, 0], lse, rtol=0, atol=1e-5)
    whole, _ = decode_attention(queries, codec, blocks[0], codec, blocks[1], last, scale=d**-0.5, n_splits=1)
    assert relative_error(output, whole) > 1e-4


@pytest.mark.parametrize("skipping", [Skipping(1.0, 0.0), Skipping(0.0, -0.1), Skipping(float("nan"), 0.0)])
def test_what_is_no_weight_is_refused(skipping: Skipping) -> None:
    with pytest.raises(OptionError, match="allowed are weights from 0 to below 1"):
        skipping.check()
