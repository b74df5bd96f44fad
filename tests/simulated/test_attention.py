"""The attention kernels of the GPU against float64 attention over the decoded values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.attention_cases import AttentionCase, relative_error
from helpers.skipping import skipping_attention

from turbocode.codecs.gpu_attention import GpuAttention, merge_on_gpu
from turbocode.errors import OptionError
from turbocode.kernels.attention.cpu import merge_partials
from turbocode.kernels.attention.cuda import Shape
from turbocode.kernels.attention.lookup import TableKind
from turbocode.kernels.attention.skipping import Skipping

FAST_ERROR, PLAIN_ERROR = 1e-3, 2e-6
CASES = {
    "two rows in a window": AttentionCase(n_tokens=100, window=50, n_rows=2, last=((98, 99),)),
    "softcap": AttentionCase(n_tokens=90, softcap=5.0, n_heads=2),
    "64, rows at odd places": AttentionCase(head_dim=64, n_tokens=75, spare=3, n_kv_heads=2),
    "80": AttentionCase("turbo3", "turbo2", 80, n_tokens=75, spare=1, n_heads=2),
    "96": AttentionCase("turbo4", "turbo3", 96, n_tokens=45, n_heads=2),
    "256": AttentionCase(head_dim=256, n_tokens=45, n_heads=6),
    "256, rows in another order": AttentionCase("turbo3", "turbo2", 256, n_tokens=45, n_heads=2, window=9),
    "twelve heads": AttentionCase("turbo2", "turbo2", n_tokens=45, n_heads=12),
    "twenty columns": AttentionCase("turbo2", "turbo2", 64, n_tokens=45, n_heads=10, n_rows=2, last=((43, 44),)),
    "pages of 16": AttentionCase(
        "turbo3", "turbo4", n_seqs=2, n_heads=2, n_kv_heads=2, n_tokens=70, last=((69,), (37,)), page=16
    ),
    "pages of 32, nothing seen": AttentionCase(
        n_seqs=2, n_heads=2, n_kv_heads=2, n_tokens=70, last=((69,), (-1,)), page=32
    ),
    "one token": AttentionCase("turbo4_0", "turbo4_0", n_tokens=1),
    "one and four bits, gains": AttentionCase("trellis1", "trellis4", n_tokens=40, has_gains=True),
    "forks' trellises": AttentionCase("turbo3_tcq", "turbo2_tcq", n_tokens=40),
    "trellis 96": AttentionCase("trellis3", "trellis2", 96, n_tokens=40),
    "trellis 80, 4,096 states": AttentionCase("trellis2_l12", "trellis3", 80, n_tokens=40),
    "trellis 64, float16": AttentionCase("trellis4", "trellis1", 64, n_tokens=40, dtype="float16"),
    "ggml": AttentionCase("q8_0", "q4_0", n_tokens=45, n_heads=2),
    "ggml 64": AttentionCase("q4_0_rot", "q8_0", 64, n_tokens=45, n_heads=2),
    "planes": AttentionCase("turbo3_0", "turbo2_0", n_tokens=45, n_heads=2),
    "planes of values": AttentionCase("turbo2_0", "turbo3_0", n_tokens=45, n_heads=2),
    "float16": AttentionCase("f16", "f16", n_tokens=45, n_heads=2),
    "rotations": AttentionCase("turbo3:rotation=none", "turbo3:rotation=hadamard", n_tokens=33),
}
PLAIN = {
    **{
        name: CASES[name]
        for name in ("80", "pages of 16", "forks' trellises", "planes", "ggml", "trellis 80, 4,096 states")
    },
    "40, blocks at odd bytes": AttentionCase("turbo3", "turbo3", 40, n_tokens=25, n_heads=2),
    "120, softcap": AttentionCase("turbo3", "f16", 120, n_tokens=12, n_heads=2, softcap=3.0, has_gains=True),
    "window": AttentionCase(n_tokens=40, window=20, n_rows=2, last=((38, 39),), n_heads=2),
}


def attend(attention: GpuAttention, case: AttentionCase, arrays: dict[str, Any], n_blocks: int) -> Any:
    return attention(
        arrays["queries"],
        arrays["keys"],
        arrays["values"],
        arrays["last_token"],
        pages=arrays["pages"],
        gains=arrays["gains"],
        n_blocks=n_blocks,
        **case.options(),
    )


def check(found: Any, arrays: dict[str, Any], bound: float) -> None:
    output, lse = found
    assert relative_error(output, arrays["output"]) <= bound
    is_seen = np.isfinite(arrays["lse"])
    np.testing.assert_array_equal(np.isfinite(lse), is_seen)
    np.testing.assert_allclose(lse[is_seen], arrays["lse"][is_seen], rtol=0, atol=4 * bound)


@pytest.mark.parametrize("name", CASES)
def test_fast_kernel(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    attention = GpuAttention(*case.codecs())
    assert not attention.is_plain
    attention._attend.shape = Shape(2, 1, 2)
    arrays = case.build(rng)
    check(attend(attention, case, arrays, 3), arrays, FAST_ERROR)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_kernel(name: str, rng: np.random.Generator) -> None:
    case = PLAIN[name]
    arrays = case.build(rng)
    check(attend(GpuAttention(*case.codecs(), is_plain=True), case, arrays, 3), arrays, PLAIN_ERROR)


def test_unknown_groups_get_the_plain_kernel() -> None:
    case = AttentionCase(head_dim=40)
    assert GpuAttention(*case.codecs()).is_plain


@pytest.mark.parametrize(
    ("shape", "n_blocks"),
    [(Shape(1, 1, 2), 2), (Shape(1, 1, 2), 5), (Shape(3, 1, 3), 2), (Shape(4, 2, 2), 1), (Shape(4, 2, 2), 3)],
)
def test_any_layout_gives_the_same(shape: Shape, n_blocks: int, rng: np.random.Generator) -> None:
    case = AttentionCase("turbo2", "turbo2", 64, n_seqs=2, n_heads=2, n_kv_heads=2, n_tokens=140, last=((139,), (33,)))
    attention = GpuAttention(*case.codecs())
    attention._attend.shape = shape
    arrays = case.build(rng)
    first = attend(attention, case, arrays, n_blocks)
    check(first, arrays, FAST_ERROR)
    again = attend(attention, case, arrays, n_blocks)  # counters are as they were
    np.testing.assert_array_equal(first[0], again[0])


def test_pieces_merge_to_the_whole(rng: np.random.Generator) -> None:
    case = AttentionCase(n_tokens=64, n_heads=2)
    attention = GpuAttention(*case.codecs())
    attention._attend.shape = Shape(1, 1, 2)
    arrays = case.build(rng)
    parts = []
    for first, stop in ((0, 20), (20, 64), (64, 64)):
        keys, values = (np.ascontiguousarray(arrays[name][:, :, first:stop]) for name in ("keys", "values"))
        if stop == first:
            keys = values = np.zeros((1, 1, 1, 50), np.uint8)
        parts.append(
            attention(
                arrays["queries"], keys, values, arrays["last_token"] if stop > first else arrays["last_token"] - 64,
                first_token=first if stop > first else 0, n_blocks=1, scale=case.scale,
            )
        )  # fmt: skip
    outputs, lses = (np.stack([part[i] for part in parts]) for i in range(2))
    check(merge_on_gpu(outputs, lses), arrays, FAST_ERROR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_token": np.zeros((1, 2), np.int32)}, "last_token is int32"),
        ({"last_token": np.zeros((1, 1), np.int16)}, "last_token is bfloat16"),
        ({"keys": np.zeros((1, 1, 70, 49), np.uint8)}, "blocks of 50 bytes"),
        ({"keys": np.zeros((2, 1, 70, 50), np.uint8)}, "do not fit"),
        ({"keys": np.zeros((1, 3, 70, 50), np.uint8), "values": np.zeros((1, 3, 70, 50), np.uint8)}, "do not fit"),
        ({"queries": np.zeros((1, 4, 1, 64), np.float32)}, "vectors of 128"),
        ({"gains": np.zeros(3, np.float32)}, "gains are"),
        ({"pages": np.zeros((1, 5), np.int32)}, "pages of 70 tokens"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str, rng: np.random.Generator) -> None:
    case = AttentionCase()
    arrays = {**case.build(rng), **change}
    with pytest.raises(OptionError, match=message):
        attend(GpuAttention(*case.codecs()), case, arrays, 1)


def test_negative_options_are_refused(rng: np.random.Generator) -> None:
    case = AttentionCase(window=0)
    arrays = case.build(rng)
    with pytest.raises(OptionError, match="n_blocks 0"):
        GpuAttention(*case.codecs())(
            *(arrays[name] for name in ("queries", "keys", "values", "last_token")), scale=1.0, n_blocks=0
        )
    with pytest.raises(OptionError, match="head_dim 128"):
        GpuAttention(case.codecs()[0], AttentionCase(head_dim=64).codecs()[1])


@pytest.mark.parametrize(
    ("kind", "k", "v"),
    [
        (TableKind.SHARED, "turbo2", "turbo4"),
        (TableKind.REGISTERS, "turbo2", "turbo2"),
        (TableKind.MAGNITUDES, "turbo3", "turbo4"),
        (TableKind.CACHED, "trellis3", "turbo3"),
        (TableKind.CONSTANT, "turbo2", "trellis2"),
    ],
)
def test_every_kind_of_tables(kind: TableKind, k: str, v: str, rng: np.random.Generator) -> None:
    case = AttentionCase(k, v, n_tokens=20, n_heads=2, window=17)
    arrays = case.build(rng)
    attention = GpuAttention(*case.codecs(), tables=kind)
    attention._attend.shape = Shape(1, 1, 2)
    check(attend(attention, case, arrays, 1), arrays, FAST_ERROR)


def test_tables_that_no_side_has_are_refused(rng: np.random.Generator) -> None:
    case = AttentionCase("turbo3", "q8_0", n_tokens=5)
    arrays = case.build_blocks(rng)
    with pytest.raises(OptionError, match="neither turbo3 nor q8_0 has tables of the kind constant; allowed: shared"):
        attend(GpuAttention(*case.codecs(), tables=TableKind.CONSTANT), case, arrays, 1)
    with pytest.raises(OptionError, match="plain kernel has no tables"):
        GpuAttention(*case.codecs(), tables=TableKind.CACHED, is_plain=True)


@pytest.mark.parametrize("skipping", [Skipping(0.03, 0.0), Skipping(0.0, 0.7)])
@pytest.mark.parametrize("is_plain", [False, True])
def test_what_hardly_counts_is_left_out(is_plain: bool, skipping: Skipping, rng: np.random.Generator) -> None:
    case = AttentionCase(head_dim=64, n_tokens=160, n_heads=1, norm=4.0)
    arrays = case.build_blocks(rng)
    attention = GpuAttention(*case.codecs(), is_plain=is_plain, skipping=skipping)
    if not is_plain:
        attention._attend.shape = Shape(1, 1, 2)
    keys, values = (codec.decode(part)[0, 0] for codec, part in zip(case.codecs(), arrays["blocks"], strict=True))
    logits = case.scale * arrays["queries"][0, 0].astype(np.float64) @ keys.T
    if is_plain:  # each of four warps has every fourth token, one at a time
        parts = [skipping_attention(logits[:, w::4], values[w::4], skipping, 1) for w in range(4)]
        merged = merge_partials(
            *(np.stack([part[i] for part in parts]) for i in range(2)), np.ones((4, 1))
        )  # fmt: skip
        expected, n_left_out = (*merged, None), sum(part[2] for part in parts)
    else:
        norms = arrays["values"][0, 0, :160, :2].copy().view(np.float16)[:, 0].astype(np.float64)
        *expected, n_left_out = skipping_attention(logits, values, skipping, 32, np.log(norms))
    output, lse = attend(attention, case, arrays, 1)
    assert n_left_out > 20
    assert relative_error(output[0, 0], expected[0]) <= FAST_ERROR
    np.testing.assert_allclose(lse[0, 0], expected[1], rtol=0, atol=4 * FAST_ERROR)
