"""The header of a multirate codec: bytes and floats of the kernels, compiled strictly as C and C++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from export.headers import BUILDS, COMPILERS, STRICT, CompiledCodec, build_library, compile_c, require

from turbocode.codecs import MultirateCodec, multirate_codec
from turbocode.errors import OptionError
from turbocode.export import c_header, default_prefix

CASES = {
    "whitened": ([8, 6, 4, 3, 2, 1, 1, 0], 1),
    "energy": ([0, 3, 3, 2], 3),
    "one_run": ([0, 0, 2], 2),
}


def codec_of(case: str, n_heads: int = 1) -> MultirateCodec:
    rates, searches = CASES[case]
    rng, d = np.random.default_rng(len(rates)), 8 * len(rates)
    law = "energy" if case == "energy" else "whitened"
    basis = np.stack([np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(n_heads)])
    mean, sigma = rng.standard_normal((n_heads, d)), np.exp2(rng.uniform(-3, 3, (n_heads, d)))
    return multirate_codec(basis, mean, sigma, rates, law, searches=searches)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("compiler", [compilers[0] for compilers in COMPILERS.values()])
def test_same_bytes_and_floats(compiler: str, build: str, tmp_path: Path) -> None:
    contraction = "-ffp-contract=fast" if compiler == "gcc" else "-ffp-contract=on"
    named = [(case, codec_of(case)) for case in CASES]
    library = build_library(named, tmp_path, compiler, (*BUILDS[build], contraction))
    rng = np.random.default_rng(1)
    for case, codec in named:
        compiled, n = CompiledCodec(library, case, codec), 48
        x = rng.standard_normal((n, codec.head_dim)) * np.exp2(rng.uniform(-8, 8, (n, 1)))
        x[:3] = codec.mean[0], np.zeros(codec.head_dim), np.full(codec.head_dim, 1e38)
        values = x.astype(np.float32)
        blocks, flags = compiled.encode(values)
        expected = codec.encode(values)[0]
        np.testing.assert_array_equal(blocks, expected)
        np.testing.assert_array_equal(flags, expected[:, 0] == 255)
        any_bytes = np.concatenate((blocks, rng.integers(0, 256, (200, blocks.shape[1]), np.uint8)))
        decoded, rotated, single = compiled.decode(any_bytes)
        np.testing.assert_array_equal(decoded, codec.decode(any_bytes))
        np.testing.assert_array_equal(rotated, codec.decode(any_bytes, unrotate=False))
        np.testing.assert_array_equal(single, rotated)
        queries = rng.standard_normal((9, codec.head_dim)).astype(np.float32)
        turned, back = compiled.rotate(queries)
        np.testing.assert_allclose(turned, codec.rotate(queries), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(back, codec.unrotate(turned), rtol=1e-3, atol=1e-3)
        bad = values[:2].copy()
        bad[0, 3], bad[1, 0] = np.nan, -np.inf
        blocks, flags = compiled.encode(bad)
        assert not blocks.any() and (flags == 2).all()


@pytest.mark.parametrize("family", COMPILERS)
def test_the_header_compiles_as_c_and_as_cpp(family: str, tmp_path: Path) -> None:
    c, cpp = (require(name) for name in COMPILERS[family])
    (tmp_path / "h.h").write_text(c_header(codec_of("energy"), prefix="h"))
    (tmp_path / "h.c").write_text(
        '#include "h.h"\nint main(void) { return h_GROUP == 0; }\n'.replace("h_GROUP", "H_GROUP_SIZE")
    )
    for command in (
        (c, "-std=c99"),
        (c, "-std=c17"),
        (cpp, "-x", "c++", "-std=c++11"),
        (cpp, "-x", "c++", "-std=c++20"),
    ):
        compile_c(
            [command[0], *STRICT, "-Wno-unused-function", *command[1:], "-c", tmp_path / "h.c", "-o", tmp_path / "h.o"]
        )


def test_a_head_has_to_be_chosen() -> None:
    codec = codec_of("energy", n_heads=2)
    with pytest.raises(OptionError, match="a header holds one"):
        c_header(codec)
    assert f"{default_prefix(codec)}_encode" in c_header(codec.for_head(1))
    assert c_header(codec.for_head(0)) != c_header(codec.for_head(1))
