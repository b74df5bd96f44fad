"""Packed attention against float64 attention over the decoded values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.compare import assert_within, relative_error

from turbocode.codebooks import Codebook
from turbocode.codecs import STANDARD_CODECS, Codec, decode_attention, make_codec, merge_attention
from turbocode.errors import OptionError
from turbocode.kernels.attention import reference

PAIRS = list(zip(STANDARD_CODECS, STANDARD_CODECS[3:] + STANDARD_CODECS[:3], strict=True))


@dataclass
class Case:
    """A packed cache and its float64 self. S sequences, H query heads, J KV heads, R rows, T tokens, D head_dim."""

    queries: Any
    key_codec: Codec
    key_blocks: Any
    value_codec: Codec
    value_blocks: Any
    last: Any

    def packed(self, **options: Any) -> tuple[Any, Any]:
        return decode_attention(
            self.queries,
            self.key_codec,
            self.key_blocks,
            self.value_codec,
            self.value_blocks,
            self.last,
            **{"scale": self.key_codec.head_dim**-0.5, **options},
        )

    def exact(self, **options: Any) -> tuple[Any, Any]:
        keys = decode_heads(self.key_codec, self.key_blocks)
        values = decode_heads(self.value_codec, self.value_blocks)
        options = {"scale": self.key_codec.head_dim**-0.5, **options}
        return reference.decode_attention(self.queries, keys, values, self.last, **options)


def decode_heads(codec: Codec, blocks: Any) -> Any:
    return np.stack([codec.decode(blocks[:, head], head) for head in range(blocks.shape[1])], axis=1)


def make_case(
    rng: np.random.Generator,
    k: str,
    v: str,
    head_dim: int,
    S: int = 1,
    H: int = 4,
    J: int = 2,
    R: int = 1,
    T: int = 65,
    spread: float = 2.0,
) -> Case:
    key_codec, value_codec = make_codec(k, head_dim), make_codec(v, head_dim)
    keys = spread * rng.standard_normal((S, J, T, head_dim)).astype(np.float32)
    values = rng.standard_normal((S, J, T, head_dim)).astype(np.float32) + 0.5
    queries = rng.standard_normal((S, H, R, head_dim)).astype(np.float32)
    last = rng.integers(0, T, (S, R))
    last[0, 0] = T - 1
    return Case(queries, key_codec, key_codec.encode(keys)[0], value_codec, value_codec.encode(values)[0], last)


def check(case: Case, **options: Any) -> None:
    output, lse = case.packed(**options)
    options.pop("n_splits", None)
    expected, expected_lse = case.exact(**options)
    assert relative_error(output, expected) <= 1e-5
    seen = np.isfinite(expected_lse)
    np.testing.assert_array_equal(np.isfinite(lse), seen)
    assert_within(lse[seen], expected_lse[seen], 2e-5 * max(1.0, float(np.abs(expected_lse[seen]).max())))


@pytest.mark.parametrize(("k", "v"), PAIRS)
def test_every_codec_as_keys_and_as_values(k: str, v: str, rng: np.random.Generator) -> None:
    check(make_case(rng, k, v, 128, S=2, H=4, J=2, R=3, T=100))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("T", [1, 31, 32, 33, 127, 1000])
def test_head_dims_and_lengths(head_dim: int, T: int, rng: np.random.Generator) -> None:
    check(make_case(rng, "turbo3", "turbo4", head_dim, T=T))


@pytest.mark.parametrize(("H", "J", "R"), [(1, 1, 1), (8, 1, 1), (6, 3, 2), (16, 2, 1), (5, 5, 5), (4, 4, 1)])
def test_grouped_heads_and_rows(H: int, J: int, R: int, rng: np.random.Generator) -> None:
    check(make_case(rng, "turbo2", "turbo3", 128, S=3, H=H, J=J, R=R, T=70))


@pytest.mark.parametrize("window", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("softcap", [0.0, 3.0, 50.0])
def test_window_and_softcap(window: int, softcap: float, rng: np.random.Generator) -> None:
    check(make_case(rng, "turbo4", "turbo4", 64, S=2, R=4, T=150), window=window, softcap=softcap)


@pytest.mark.parametrize("n_splits", [1, 2, 3, 5, 200])
def test_splits_do_not_matter(n_splits: int, rng: np.random.Generator) -> None:
    case = make_case(rng, "turbo3", "turbo3", 128, S=2, R=2, T=130)
    check(case, n_splits=n_splits)
    check(case, n_splits=n_splits, window=40)


def test_a_row_that_sees_nothing_is_zero(rng: np.random.Generator) -> None:
    case = make_case(rng, "turbo3", "turbo3", 128, S=2, R=2, T=40)
    case.last[1, :] = -1
    output, lse = case.packed()
    assert not output[1].any()
    assert np.isneginf(lse[1]).all()
    assert np.isfinite(output).all()
    assert np.isfinite(lse[0]).all()


@pytest.mark.parametrize("window", [0, 33])
def test_pieces_merge_to_the_whole(window: int, rng: np.random.Generator) -> None:
    case = make_case(rng, "turbo3", "q8_0", 128, S=2, R=3, T=120)
    whole, whole_lse = case.packed(window=window)
    parts = []
    for start, stop in ((0, 50), (50, 51), (51, 120)):
        piece = Case(
            case.queries,
            case.key_codec,
            case.key_blocks[:, :, start:stop],
            case.value_codec,
            case.value_blocks[:, :, start:stop],
            case.last,
        )
        parts.append(piece.packed(window=window, first_token=start))
    merged, lse = merge_attention(np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts]))
    assert relative_error(merged, whole) <= 2e-6
    assert_within(lse, whole_lse, 1e-5)


def test_large_logits_do_not_overflow(rng: np.random.Generator) -> None:
    case = make_case(rng, "turbo4", "turbo3", 128, T=64, spread=3000.0)
    output, lse = case.packed()
    expected, expected_lse = case.exact()
    assert np.abs(expected_lse).max() > 1e3
    assert np.isfinite(output).all()
    assert relative_error(output, expected) <= 1e-2  # a float32 logit of 1e4 has an error of 1e-3
    assert relative_error(lse, expected_lse) <= 1e-5


def test_each_kv_head_reads_its_own_codebook(rng: np.random.Generator) -> None:
    base = make_codec("turbo3", 128).codebooks[0]
    books = [Codebook(f"head{h}", base.centroids * (1 + 0.1 * h) + 0.01 * h, 0.04) for h in range(2)]
    codec = make_codec("turbo3", 128, codebooks=books)
    x = rng.standard_normal((2, 1, 2, 50, 128)).astype(np.float32)
    blocks = [np.stack([codec.encode(part[:, h], h)[0] for h in range(2)], axis=1) for part in x]
    case = Case(rng.standard_normal((1, 4, 1, 128)), codec, blocks[0], codec, blocks[1], np.array([[49]]))
    check(case)
    with pytest.raises(OptionError, match="codebooks of 2 heads"):
        Case(case.queries, codec, blocks[0][:, :1], codec, blocks[1][:, :1], case.last).packed()


def test_arguments_that_do_not_fit_are_refused(rng: np.random.Generator) -> None:
    case = make_case(rng, "turbo3", "turbo3", 128, T=10)
    for change in (
        {"last": np.array([[10]])},
        {"last": np.array([[-2]])},
        {"last": np.array([[1, 2]])},
        {"queries": case.queries[:, :3]},
        {"queries": case.queries[..., :64]},
        {"queries": case.queries[0]},
        {"key_blocks": case.key_blocks[..., :49]},
        {"value_blocks": case.value_blocks[:, :, :5]},
    ):
        with pytest.raises(OptionError):
            Case(**{**case.__dict__, **change}).packed()
