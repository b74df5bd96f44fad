"""The multirate codec: a fitted basis, files, packed attention and models' caches, what it costs, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from turbocode.codecs import (
    MultirateCodec,
    coder_from_description,
    decode_attention,
    make_codec,
    multirate_codec,
    multirate_from_calibration,
)
from turbocode.conversion import dequantize_file, quantize_dump
from turbocode.dumps import DumpMetadata, create_calibration, open_dump, open_quantized
from turbocode.errors import DataError, OptionError
from turbocode.evaluation.verification import verify_file
from turbocode.kernels.multirate import basis, reference
from turbocode.policies import resolve_coder
from turbocode.policies.recipe import parse_recipe

DATA = Path(__file__).parents[2] / "data"
RATES = [6, 5, 4, 3, 3, 2, 1, 0]


def fitted(heads: int, d: int, rates: list[int], law: str, rng: np.random.Generator) -> tuple[MultirateCodec, list]:
    """A codec of the eigenvectors of random covariances, and the vectors (heads, n, d) that have them."""
    bases, means, sigmas, vectors = [], [], [], []
    for _ in range(heads):
        mix = rng.standard_normal((d, d)) * np.exp2(rng.uniform(-2, 2, d))
        mean = 3 * rng.standard_normal(d)
        values, axes = np.linalg.eigh(mix.T @ mix)
        bases.append(axes.T[::-1])
        means.append(mean)
        sigmas.append(np.sqrt(values[::-1]))
        vectors.append(rng.standard_normal((60, d)) @ mix + mean)
    return multirate_codec(np.stack(bases), np.stack(means), np.stack(sigmas), rates, law), vectors


@pytest.mark.parametrize("law", ["whitened", "energy"])
def test_vectors_come_back_in_the_models_basis(law: str, rng: np.random.Generator) -> None:
    codec, vectors = fitted(2, 64, RATES, law, rng)
    for head in range(2):
        x = vectors[head].astype(np.float32)
        blocks, report = codec.encode(x, head)
        decoded = codec.decode(blocks, head)
        assert blocks.shape == (60, 25) and codec.bytes_per_vector == 25
        centred = np.square(x - codec.mean[head]).sum()
        assert np.square(decoded - x).sum() / centred < 0.05
        np.testing.assert_allclose(report.nmse, np.square(decoded - x).sum() / np.square(x).sum(), rtol=1e-4)
        one = codec.for_head(head)
        np.testing.assert_array_equal(one.encode(x)[0], blocks)
        inner = codec.decode(blocks, head, unrotate=False)
        np.testing.assert_allclose(codec.unrotate(inner, head), decoded, atol=1e-4)
        query = rng.standard_normal(64)
        logits = codec.rotate(query, head) @ inner.T + codec.logit_offset(query, head)
        np.testing.assert_allclose(logits, decoded @ query, atol=2e-3)


def test_the_bytes_are_those_of_the_definition(rng: np.random.Generator) -> None:
    """The basis, the search and the way back in NumPy float32, operation by operation."""
    codec, vectors = fitted(1, 32, [4, 3, 2, 1], "whitened", rng)
    x, zeros = vectors[0].astype(np.float32), np.zeros(32, np.float32)
    matrix = basis.basis_matrix(codec.basis[0], codec.row_scale[0], codec.column_scale[0])
    y = reference.affine(x, codec.mean[0], matrix.T, zeros)
    side = codec.head_constants(0).side
    stored = reference.encode(y, side, codec.searches, np.float32)
    blocks = codec.encode(x)[0]
    np.testing.assert_array_equal(blocks, stored.view(np.uint8).reshape(blocks.shape))
    back = reference.decode(stored, side, kind=np.float32)
    assert all(after < before for before, after in itertools.pairwise(codec.stretch[1:]))
    stretched = basis.inverse_matrix(matrix).T * np.repeat(np.float32(codec.stretch)[[4, 3, 2, 1]], 8)[:, None]
    expected = reference.affine(back, zeros, stretched, codec.mean[0])
    np.testing.assert_array_equal(codec.decode(blocks), expected)


def test_the_basis_keeps_its_accuracy_at_any_scale_of_channels(rng: np.random.Generator) -> None:
    exact = np.linalg.qr(rng.standard_normal((96, 96)))[0] * np.exp2(rng.uniform(-6, 6, 96))
    matrix = basis.basis_matrix(*(array[0] for array in basis.quantize_basis(exact[None])))
    product = exact @ np.linalg.inv(matrix.astype(np.float64))
    assert np.linalg.norm(product - np.eye(96)) < 0.1 * np.sqrt(96)
    inverse = basis.inverse_matrix(matrix).astype(np.float64)
    np.testing.assert_allclose(inverse @ matrix.astype(np.float64), np.eye(96), atol=2e-3)
    with pytest.raises(DataError, match="no inverse"):
        basis.inverse_matrix(np.ones((4, 4), np.float32))


def test_bits_count_everything_stored(rng: np.random.Generator) -> None:
    codec, _ = fitted(2, 64, RATES, "energy", rng)
    n_bytes = 2 * (64 * 64 + 4 * 4 * 64) + 8 + 8
    assert codec.bits_per_value == pytest.approx(8 * 25 / 64 + 8 * n_bytes / (32768 * 2 * 64), rel=1e-12)


@pytest.mark.parametrize("softcap", [0.0, 20.0])
@pytest.mark.parametrize("value_codec", ["multirate", "trellis3"])
def test_packed_attention_reads_the_blocks(softcap: float, value_codec: str, rng: np.random.Generator) -> None:
    keys, x = fitted(2, 64, RATES, "whitened", rng)
    values = fitted(2, 64, [4, 4, 4, 3, 3, 2, 2, 0], "energy", rng)[0] if value_codec == "multirate" else None
    values = values or make_codec(value_codec, 64)
    k = np.stack(x).astype(np.float32)
    v = rng.standard_normal(k.shape).astype(np.float32)
    stored = {
        name: np.stack([coder.encode(array[head], head)[0] for head in range(2)])[None]
        for name, coder, array in (("k", keys, k), ("v", values, v))
    }
    q = 0.2 * rng.standard_normal((1, 4, 3, 64))
    last = np.array([[59, 30, 4]])
    out, lse = decode_attention(q, keys, stored["k"], values, stored["v"], last, scale=0.3, softcap=softcap)
    for query_head in range(4):
        head = query_head // 2
        dk = keys.decode(stored["k"][0, head], head).astype(np.float64)
        dv = values.decode(stored["v"][0, head], head).astype(np.float64)
        for row in range(3):
            logits = 0.3 * dk[: last[0, row] + 1] @ q[0, query_head, row]
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            weights = np.exp(logits - logits.max())
            expected = weights @ dv[: len(logits)] / weights.sum()
            assert np.linalg.norm(out[0, query_head, row] - expected) < 1e-4 * np.linalg.norm(expected)
            assert abs(lse[0, query_head, row] - logits.max() - np.log(weights.sum())) < 1e-3


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration file with a multirate codec for every layer and side of the small dump."""
    path = tmp_path_factory.mktemp("multirate") / "calibration.h5"
    rng = np.random.default_rng(5)
    with open_dump(DATA / "tiny-pride.h5") as dump:
        about = dump.metadata
        with create_calibration(path, about, provenance={"by": "a test"}, dump_sha256=dump.content_sha256()) as writer:
            for layer in dump.layers:
                for side, law in (("keys", "whitened"), ("values", "energy")):
                    bases, means, sigmas = [], [], []
                    for head in range(about.n_kv_heads):
                        x = layer.read(side, 0, head).astype(np.float64)
                        covariance = np.cov(x.T) + 1e-3 * np.eye(about.head_dim) * x.var()
                        variances, axes = np.linalg.eigh(covariance)
                        bases.append(axes.T[::-1])
                        means.append(x.mean(axis=0))
                        sigmas.append(np.sqrt(variances[::-1]))
                    rates = np.sort(rng.integers(1, 6, about.head_dim // 8))[::-1]
                    codec = multirate_codec(np.stack(bases), np.stack(means), np.stack(sigmas), rates, law)
                    writer.write(layer.name, side, "multirate", *codec.calibration_entry())
    return path


def test_files_hold_all_that_reading_needs(calibrated: Path, tmp_path: Path) -> None:
    recipe = parse_recipe({"k": "multirate", "v": "multirate", "calibration": str(calibrated)})
    with open_dump(DATA / "tiny-pride.h5") as dump:
        about = quantize_dump(dump, tmp_path / "q.h5", recipe, max_memory=1 << 28)
        assert about["layers"][0]["codec"] == "multirate"
        assert about["total"]["bits_per_value"] < 6
        coder = resolve_coder(recipe, 0, "keys", dump.metadata.head_dim, dump.metadata.n_kv_heads)
        expected = coder.encode(dump.layers[0].read("keys", 0, 1, 0, 40), 1)[0]
    with open_quantized(tmp_path / "q.h5") as quantized:
        side = quantized.layers[0].side("keys")
        again = coder_from_description(side.codec, side.arrays())
        assert again.describe() == coder.describe()
        np.testing.assert_array_equal(side.read(0, 1, 0, 40), expected)
        dequantize_file(quantized, tmp_path / "back.h5", max_memory=1 << 28)
    checks = verify_file(tmp_path / "q.h5", against=DATA / "tiny-pride.h5")
    assert not checks["findings"], checks
    with open_dump(tmp_path / "back.h5") as back:
        np.testing.assert_array_equal(
            back.layers[0].read("keys", 0, 1, 0, 40), again.decode(expected, 1).astype(np.float16)
        )


def test_descriptions_that_disagree_are_refused(rng: np.random.Generator) -> None:
    codec, _ = fitted(2, 64, RATES, "energy", rng)
    description, arrays = codec.describe(), codec.arrays()
    assert coder_from_description(description, arrays).describe() == description
    for change in (
        {"version": 2},
        {"law": "loud"},
        {"gain_ratio": 0.5},
        {"searches": 9},
        {"arrays": {}},
        {"n_heads": 3},
    ):
        with pytest.raises(DataError):
            coder_from_description({**description, **change}, arrays)
    about, entry = codec.calibration_entry()
    hostile = {"gain_base": 10**400, "stretch": [10**400] * 9, "searches": 10**400}
    for key, value in hostile.items():
        with pytest.raises(DataError):
            multirate_from_calibration({**about, key: value}, entry, 2, 64)
    for name, factor in (("sigma", 1e30), ("column_scale", 0.0), ("row_scale", 0.0)):
        with pytest.raises(DataError), np.errstate(over="ignore"):
            multirate_from_calibration(about, {**entry, name: entry[name] * np.float32(factor)}, 2, 64)
    with pytest.raises(DataError, match="array sigma"):
        coder_from_description(description, {**arrays, "sigma": arrays["sigma"] * 2})
    about, entry = codec.calibration_entry()
    assert multirate_from_calibration(about, entry, 2, 64).describe() == description
    for heads, d in ((3, 64), (2, 128)):
        with pytest.raises(DataError, match="2 heads of 64"):
            multirate_from_calibration(about, entry, heads, d)
    with pytest.raises(DataError, match="another codebook"):
        multirate_from_calibration({**about, "codebook_sha256": "0" * 64}, entry, 2, 64)
    with pytest.raises(DataError, match="multirate"):
        multirate_from_calibration(about, {**entry, "sigma": entry["sigma"][:, :5]}, 2, 64)


def test_what_multirate_cannot_do_is_refused(calibrated: Path, rng: np.random.Generator) -> None:
    with pytest.raises(OptionError, match="calibration"):
        make_codec("multirate", 128)
    with pytest.raises(OptionError, match="calibration"):
        resolve_coder(parse_recipe({"k": "multirate"}), 0, "keys", 64, 2)
    with pytest.raises(DataError, match="no options"):
        parse_recipe({"k": "multirate:norm=mse"})
    both = {"k": "multirate", "transforms": {"k": ["mean"]}, "calibration": str(calibrated)}
    with pytest.raises(OptionError, match="do not go with it"):
        resolve_coder(parse_recipe(both), 0, "keys", 64, 2)
    codec, _ = fitted(1, 32, [4, 3, 2, 1], "whitened", rng)
    with pytest.raises(DataError, match="vector \\(1,\\)"):
        codec.encode(np.array([[0.0] * 32, [np.nan] * 32]))
    with pytest.raises(OptionError):
        codec.encode(np.zeros((2, 31)))
    with pytest.raises(OptionError):
        codec.decode(np.zeros((2, 5), np.uint8))
    blocks, report = codec.encode(np.full((1, 32), 1e38))
    assert report.saturated_vectors == 1 and blocks[0, 0] == 255


def test_a_calibration_without_multirate_says_what_makes_one(tmp_path: Path) -> None:
    about = DumpMetadata("float16", 1, 2, 1, 32, 32**-0.5, 0.0)
    with create_calibration(tmp_path / "c.h5", about, provenance={}, dump_sha256="0" * 64):
        pass
    recipe = parse_recipe({"k": "multirate", "calibration": str(tmp_path / "c.h5")})
    with pytest.raises(DataError) as error:
        resolve_coder(recipe, 0, "keys", 32, 1)
    assert error.value.hint is not None and "turbocode tune" in error.value.hint
