"""Every transform leaves attention as it is: where its inverse goes is exact, whatever it was fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codecs import TransformedCodec, decode_attention, make_codec, merge_attention
from turbocode.dumps import Dump, SynthesisSpec, open_dump, synthesize
from turbocode.errors import OptionError
from turbocode.kernels.attention import reference
from turbocode.training.calibrate import parse_transforms
from turbocode.transforms import (
    TOKEN_TRANSFORMS,
    TRANSFORM_NAMES,
    FittedChain,
    SideStatistics,
    collect_statistics,
    fit_chain,
)

SPEC = SynthesisSpec(
    n_layers=1, n_tokens=300, n_query_heads=4, head_dim=64, n_rows=40, constant_share=0.6, outlier_channels=3
)
# gain changes values on purpose; test_per_token.py has those that keep bytes of every token, test_aqua.py has aqua.
EXACT = [name for name in TRANSFORM_NAMES if name not in ("gain", "aqua", *TOKEN_TRANSFORMS)]
CHAINS = [*EXACT, *(f"mean+{name}" for name in EXACT if name != "mean")]
SIDES = ("keys", "values")


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("dump") / "dump.h5"
    synthesize(path, SPEC)
    with open_dump(path) as found:
        yield found


@pytest.fixture(scope="module")
def statistics(dump: Dump) -> dict[str, SideStatistics]:
    return {side: collect_statistics(dump, dump.layers[0], side) for side in SIDES}


def fitted(text: str, side: str, statistics: dict[str, SideStatistics]) -> FittedChain:
    try:
        return fit_chain(parse_transforms(text), statistics[side])
    except OptionError as refusal:
        pytest.skip(f"{text} is not for {side}: {refusal}")


def arrays(dump: Dump) -> tuple[Any, Any, Any, Any]:
    layer, about = dump.layers[0], dump.metadata
    read = [
        np.stack([layer.read(kind, 0, h) for h in range(n)])[None].astype(np.float32)
        for kind, n in (("queries", about.n_query_heads), ("keys", about.n_kv_heads), ("values", about.n_kv_heads))
    ]
    return (*read, layer.query_positions())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("text", CHAINS)
def test_attention_is_unchanged_to_rounding(
    text: str, side: str, dump: Dump, statistics: dict[str, SideStatistics]
) -> None:
    """The identity codec: vectors are mapped, kept in float32, and read as attention reads blocks."""
    chain = fitted(text, side, statistics)
    queries, keys, values, last = arrays(dump)
    change, group = chain.head_map, SPEC.n_query_heads // SPEC.n_kv_heads
    exact, _ = reference.decode_attention(queries, keys, values, last, scale=0.125)
    q, coded, offset = queries.copy(), {"keys": keys.copy(), "values": values.copy()}, np.zeros(queries.shape[:3])
    for head in range(SPEC.n_kv_heads):
        coded[side][:, head] = change.code(coded[side][:, head], head)
        assert change.restore(coded[side][:, head], head) == pytest.approx(
            dict(zip(SIDES, (keys, values), strict=True))[side][:, head], abs=2e-4
        )
        if side == "keys":
            heads = slice(head * group, (head + 1) * group)
            q[:, heads] = change.queries(queries[:, heads], head)
            found = change.logit_offset(queries[:, heads], head)
            offset[:, heads] = 0.0 if found is None else found
    output, lse = reference.decode_attention(q, coded["keys"], coded["values"], last, scale=0.125)
    if side == "values":
        output = np.stack([change.restore(output[:, h], h // group) for h in range(SPEC.n_query_heads)], axis=1)
    np.testing.assert_allclose(output, exact, atol=3e-5 * np.abs(exact).max())
    _, exact_lse = reference.decode_attention(queries, keys, values, last, scale=0.125)
    np.testing.assert_allclose(lse + 0.125 * offset, exact_lse, atol=1e-4)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("text", [name for name in CHAINS if name in ("mean", "mean+klt", "mean+balance")])
def test_packed_attention_in_pieces_with_tokens_that_are_not_coded(
    text: str, softcap: float, dump: Dump, statistics: dict[str, SideStatistics]
) -> None:
    """The mean of the keys is missing from the logits of the coded piece alone: merging and softcap must add it."""
    queries, keys, values, last = arrays(dump)
    plain = make_codec("f16", SPEC.head_dim)
    pieces = []
    coders = {}
    for side in SIDES:
        names = text if side == "keys" else "mean"
        coders[side] = TransformedCodec(plain, fitted(names, side, statistics))
    for start, stop, (k, v) in ((0, 20, (plain, plain)), (20, 300, (coders["keys"], coders["values"]))):
        blocks = [
            np.stack([coder.encode(x[:, h, start:stop], h)[0] for h in range(SPEC.n_kv_heads)], axis=1)
            for coder, x in ((k, keys), (v, values))
        ]
        pieces.append(
            decode_attention(queries, k, blocks[0], v, blocks[1], last, scale=0.125, softcap=softcap, first_token=start)
        )
    merged, lse = merge_attention(np.stack([p[0] for p in pieces]), np.stack([p[1] for p in pieces]))
    exact, exact_lse = reference.decode_attention(queries, keys, values, last, scale=0.125, softcap=softcap)
    np.testing.assert_allclose(merged, exact, atol=3e-3)
    np.testing.assert_allclose(lse, exact_lse, atol=3e-3)


def test_a_row_that_sees_nothing_gives_zero(dump: Dump, statistics: dict[str, SideStatistics]) -> None:
    coders = [TransformedCodec(make_codec("q8_0", 64), fitted("mean", side, statistics)) for side in SIDES]
    queries, keys, values, _ = arrays(dump)
    blocks = [
        np.stack([c.encode(x[:, h], h)[0] for h in range(2)], axis=1)
        for c, x in zip(coders, (keys, values), strict=True)
    ]
    nothing = np.full((1, queries.shape[2]), -1)
    output, lse = decode_attention(queries, coders[0], blocks[0], coders[1], blocks[1], nothing, scale=1.0)
    assert not output.any() and np.isneginf(lse).all()


def test_too_few_tokens_are_refused(dump: Dump) -> None:
    with pytest.raises(OptionError, match="100 tokens are too few"):
        collect_statistics(dump, dump.layers[0], "keys", stop=100)


def test_statistics_of_a_chain_are_those_of_what_it_codes(statistics: dict[str, SideStatistics]) -> None:
    """What a later transform is fitted on, computed from moments, is what the mapped vectors have."""
    keys = statistics["keys"]
    mapped = keys.mapped(fitted("mean", "keys", statistics).head_map)
    assert np.abs(mapped.mean).max() < 1e-2 < np.abs(keys.mean).max()
    x = mapped.sample[1].astype(np.float64)
    np.testing.assert_allclose(mapped.covariance[1], np.cov(x.T, bias=True), atol=2e-2)


def test_statistics_are_the_dumps(dump: Dump, tmp_path: Path) -> None:
    found = collect_statistics(dump, dump.layers[0], "keys", stop=260)
    keys = dump.layers[0].read("keys", 0, 1, 0, 260).astype(np.float64)
    np.testing.assert_allclose(found.mean[1], keys.mean(axis=0))
    np.testing.assert_allclose(found.covariance[1], np.cov(keys.T, bias=True), atol=1e-10)
    np.testing.assert_allclose(found.largest[1], np.abs(keys).max(axis=0))
    seen = dump.layers[0].query_positions()[0] < 260
    q = np.concatenate([dump.layers[0].read("queries", 0, h)[seen] for h in (2, 3)]).astype(np.float64)
    np.testing.assert_allclose(found.query_moment[1], q.T @ q / len(q))
    np.testing.assert_array_equal(found.sample[1], keys.astype(np.float32))
