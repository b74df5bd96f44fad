"""Rate and distortion, idempotence, and the codec's two verbs, over every codec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from turbocode.codebooks import Codebook, load_codebook
from turbocode.codecs import CODEC_NAMES, STANDARD_CODECS, codec_from_description, make_codec, parse_codec
from turbocode.dumps import open_dump
from turbocode.errors import DataError, OptionError

# NMSE on i.i.d. Gaussian groups that must be met, and stored bits per value, at head_dim 128.
MUST = {
    "turbo2": (0.1195, 2.125),
    "turbo3": (0.0341, 3.125),
    "turbo4": (0.0093, 4.125),
    "turbo2_0": (0.1195, 2.5),
    "turbo3_0": (0.0341, 3.5),
    "turbo4_0": (0.0093, 4.125),
    "q8_0": (2.9e-5, 8.5),
    "q4_0": (0.0074, 4.5),
    "q8_0_rot": (2.9e-5, 8.5),
    "q4_0_rot": (0.0074, 4.5),
    "f16": (1e-7, 16.0),
    "turbo1_tcq": (0.271, 1.25),
    "turbo2_tcq": (0.0741, 2.25),
    "turbo3_tcq": (0.0196, 3.25),
    "trellis1": (0.285, 1.125),
    "trellis2": (0.0772, 2.125),
    "trellis3": (0.0203, 3.125),
    "trellis4": (0.00525, 4.125),
}
SCALAR = [name for name in STANDARD_CODECS if not make_codec(name, 128).block_format.is_trellis]
LLOYD_MAX = {"turbo2": 0.117482, "turbo3": 0.034548, "turbo4": 0.009501}
IDEMPOTENT = [
    *SCALAR,
    *(f"turbo{bits}:norm={mode}" for bits in (2, 3, 4) for mode in ("mse", "unbiased")),
]


@pytest.mark.parametrize("name", STANDARD_CODECS)
def test_distortion_and_rate_on_gaussian_groups(name: str) -> None:
    codec = make_codec(name, 128)
    n_groups = 65536 if name in SCALAR else 8192  # rate_distortion.py measures trellises on 65,536 too
    x = np.random.default_rng(2026).standard_normal((n_groups, 128), dtype=np.float32)
    blocks, report = codec.encode(x)
    must, bits = MUST[name]
    assert report.nmse <= must
    assert codec.bits_per_value == bits
    assert blocks.nbytes * 8 == bits * x.size


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256, 512])
@pytest.mark.parametrize("name", ["turbo2", "turbo3", "turbo4"])
def test_distortion_is_near_theory_for_every_head_dim(name: str, head_dim: int, rng: np.random.Generator) -> None:
    codec = make_codec(name, head_dim)
    _, report = codec.encode(rng.standard_normal((4_000_000 // head_dim, head_dim), dtype=np.float32))
    # The sphere's codebook gains on small groups, the norm correction costs at two bits.
    assert report.nmse == pytest.approx(LLOYD_MAX[name], rel=0.04 if head_dim >= 128 else 0.08)


@pytest.mark.parametrize("spec", IDEMPOTENT)
@pytest.mark.parametrize("source", ["gaussian", "keys"])
def test_fifty_cycles_change_no_index(spec: str, source: str, rng: np.random.Generator, tiny_pride: Path) -> None:
    codec = make_codec(spec, 128)
    if source == "keys":
        with open_dump(tiny_pride) as dump:
            x = np.concatenate([layer.read("keys", 0, head) for layer in dump.layers for head in range(2)])
    else:
        x = rng.standard_normal((4096, 128)).astype(np.float32)
    first, _ = codec.encode(x)
    blocks = first
    for _ in range(50):
        blocks, _ = codec.encode(codec.decode(blocks))
    np.testing.assert_array_equal(blocks, first)


@pytest.mark.parametrize("spec", IDEMPOTENT)
def test_rounding_to_float16_between_cycles_changes_no_index(spec: str, rng: np.random.Generator) -> None:
    codec = make_codec(spec, 128)
    dtype = codec.block_format.dtype
    first, _ = codec.encode(rng.standard_normal((4096, 128)))
    blocks = first
    for _ in range(50):
        blocks, _ = codec.encode(codec.decode(blocks).astype(np.float16))
    for field in dtype.names or ():
        if field != "scale":  # rounding the extreme value can move a ggml scale by its last bit
            np.testing.assert_array_equal(blocks.view(dtype)[field], first.view(dtype)[field])


def test_the_raw_norm_drifts_as_documented(rng: np.random.Generator) -> None:
    codec, x = make_codec("turbo3:norm=raw", 128), rng.standard_normal((500, 128)).astype(np.float32)
    once, report = codec.encode(x)
    y = codec.decode(once)
    for _ in range(49):
        y = codec.decode(codec.encode(y)[0])
    assert np.square(y - x).sum() > 10 * report.error


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_a_description_gives_the_same_codec(name: str, rng: np.random.Generator) -> None:
    codec, x = make_codec(name, 128), rng.standard_normal((20, 128))
    again = codec_from_description(json.loads(json.dumps(codec.describe(), allow_nan=False)))
    assert again.describe() == codec.describe()
    np.testing.assert_array_equal(again.encode(x)[0], codec.encode(x)[0])
    np.testing.assert_array_equal(again.decode(codec.encode(x)[0]), codec.decode(codec.encode(x)[0]))


@pytest.mark.parametrize("options", ["norm=raw", "norm=mse,rotation=none", "rotation=hadamard", "codebook=gaussian-3"])
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_a_description_keeps_every_option(options: str, head_dim: int, rng: np.random.Generator) -> None:
    books = tuple(
        Codebook(f"head{h}", load_codebook("gaussian-3").centroids * (1 + 0.1 * h), 0.04, {"head": h}) for h in range(2)
    )
    codec = make_codec(f"turbo3:{options}", head_dim, codebooks=None if "codebook" in options else books)
    again = codec_from_description(json.loads(json.dumps(codec.describe(), allow_nan=False)))
    x = rng.standard_normal((20, head_dim))
    for head in range(len(codec.codebooks)):
        np.testing.assert_array_equal(again.encode(x, head)[0], codec.encode(x, head)[0])
        for table, expected in zip(again.for_head(head).tables(), codec.tables(head), strict=True):
            np.testing.assert_array_equal(table, expected)


def test_each_head_has_its_own_codebook(rng: np.random.Generator) -> None:
    base = load_codebook("gaussian-3")
    books = [base, Codebook("wide", base.centroids * 1.5, 0.1)]
    codec, x = make_codec("turbo3", 128, codebooks=books), rng.standard_normal((50, 128))
    for head, book in enumerate(books):
        alone = make_codec("turbo3", 128, codebooks=book)
        blocks, _ = codec.encode(x, head)
        np.testing.assert_array_equal(blocks, alone.encode(x)[0])
        np.testing.assert_array_equal(codec.decode(blocks, head), alone.decode(blocks))
        np.testing.assert_array_equal(codec.for_head(head).decode(blocks), alone.decode(blocks))
    assert (codec.encode(x, 0)[0] != codec.encode(x, 1)[0]).any()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("version", None),
        ("codec", "zzz"),
        ("codec", None),
        ("codec", "turbo2"),
        ("codec", "turbo3_0"),
        ("head_dim", 64),
        ("head_dim", "128"),
        ("head_dim", True),
        ("norm_mode", None),
        ("codebooks", None),
        ("format", None),
        ("rotation", "spin"),
        ("norm_mode", "best"),
        ("codebooks", []),
        ("codebooks", [{}]),
        ("format", {"name": "turbo3"}),
        ("format", {"name": "turbo9"}),
    ],
)
def test_descriptions_that_were_tampered_with_are_refused(key: str, value: object) -> None:
    with pytest.raises(DataError):
        codec_from_description({**make_codec("turbo3", 128).describe(), key: value})


@pytest.mark.parametrize("document", [None, [], "turbo3", 3])
def test_descriptions_that_are_no_object_are_refused(document: Any) -> None:
    with pytest.raises(DataError, match="must be an object"):
        codec_from_description(document)


@pytest.mark.parametrize("key", make_codec("turbo3", 128).describe())
def test_a_description_without_a_key_names_it(key: str) -> None:
    description = make_codec("turbo3", 128).describe()
    del description[key]
    with pytest.raises(DataError, match=f"{key!r} is missing"):
        codec_from_description(description)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[::2],
        lambda x: x[:, ::-1],
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(">f2"),
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float64),
        lambda x: (8 * x).astype(np.int32),
    ],
)
def test_layout_and_type_of_the_input_do_not_matter(make: object, rng: np.random.Generator) -> None:
    codec, x = make_codec("turbo3", 128), rng.standard_normal((10, 128)).astype(np.float16)
    changed = make(x)  # type: ignore[operator]
    expected, _ = codec.encode(np.ascontiguousarray(changed, dtype=np.float32))
    np.testing.assert_array_equal(codec.encode(changed)[0], expected)


def test_leading_axes_are_kept(rng: np.random.Generator) -> None:
    codec = make_codec("turbo4", 256)
    blocks, report = codec.encode(rng.standard_normal((2, 3, 5, 256)))
    assert blocks.shape == (2, 3, 5, 132)
    assert codec.decode(blocks).shape == (2, 3, 5, 256)
    assert report.n_vectors == 30
    assert codec.encode(np.zeros((0, 256)))[0].shape == (0, 132)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CODEC_NAMES)
def test_values_that_are_not_finite_are_named(name: str, bad: float, rng: np.random.Generator) -> None:
    for dtype, head_dim in ((np.float16, 128), (np.float32, 256)):
        x = rng.standard_normal((3, 4, head_dim)).astype(dtype)
        x[2, 1, head_dim - 51] = x[2, 3, 0] = bad
        with pytest.raises(DataError, match=r"vector \(2, 1\)"):
            make_codec(name, head_dim).encode(x)


@settings(max_examples=200, deadline=None)
@given(
    bits=arrays(np.uint16, (2, 64), elements=st.integers(0, 65535)),
    name=st.sampled_from(["turbo2", "turbo3", "turbo4", "q8_0_rot", "q4_0", "f16"]),
)
def test_any_float16_pattern_decodes_finite_or_is_refused(bits: np.ndarray, name: str) -> None:
    codec, x = make_codec(name, 64), bits.view(np.float16)
    if np.isfinite(x).all():
        assert np.isfinite(codec.decode(codec.encode(x)[0])).all()
    else:
        with pytest.raises(DataError):
            codec.encode(x)


@settings(max_examples=200, deadline=None)
@given(bits=arrays(np.uint8, (3, 50), elements=st.integers(0, 255)))
def test_any_bytes_decode_without_a_crash(bits: np.ndarray) -> None:
    assert make_codec("turbo3", 128).decode(bits).shape == (3, 128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("turbo3", "turbo3"),
        ("turbo3:", "turbo3"),
        ("turbo3:norm=mse", "turbo3:norm=mse"),
        ("turbo4:norm=raw,rotation=none", "turbo4:rotation=none,norm=raw"),
    ],
)
def test_specs_are_read_and_written(text: str, expected: str) -> None:
    assert str(parse_codec(text)) == expected
    assert parse_codec(expected) == parse_codec(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "turbo",
        "turbo3:norm",
        "turbo3:norm=",
        "turbo3:norm=best",
        "turbo3:speed=1",
        "q8_0:norm=mse",
        "f16:codebook=x",
        "turbo3:norm=l2,norm=l2",
        "turbo3 ",
    ],
)
def test_specs_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_codec(text)


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(OptionError) as error:
        parse_codec("trubo3")
    assert error.value.hint == "did you mean turbo3?"


def test_codebooks_have_to_fit() -> None:
    with pytest.raises(OptionError, match="has 4 bits; turbo3 needs 3"):
        make_codec("turbo3", 128, codebooks=load_codebook("gaussian-4"))
    with pytest.raises(OptionError, match="codebooks given"):
        make_codec("q8_0", 128, codebooks=load_codebook("gaussian-4"))
    lopsided = Codebook("lopsided", np.array([-1.0, 0.0, 1.0, 5.0]), 0.5)
    blocks, _ = make_codec("turbo2:norm=unbiased", 128, codebooks=lopsided).encode(np.ones((1, 128)))
    assert np.isfinite(make_codec("turbo2", 128, codebooks=lopsided).decode(blocks)).all()


def test_forks_formats_and_ours_hold_the_same_indices(rng: np.random.Generator) -> None:
    x, book = rng.standard_normal((50, 128)), load_codebook("gaussian-3")
    ours = make_codec("turbo3", 128, codebooks=book)
    fork = make_codec("turbo3_0", 128)
    np.testing.assert_array_equal(ours.decode(ours.encode(x)[0]), fork.decode(fork.encode(x)[0]))
    four = make_codec("turbo4", 128, codebooks=load_codebook("gaussian-4"))
    np.testing.assert_array_equal(four.encode(x)[0], make_codec("turbo4_0", 128).encode(x)[0])
