"""The header's bytes and floats are those of the kernels, whatever the compiler and its options."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
from export.headers import BUILDS, COMPILERS, CompiledCodec, build_library, compile_c, mixture, prefix_of, require

from turbocode.codecs import make_codec
from turbocode.errors import OptionError
from turbocode.export import c_header
from turbocode.kernels.fwht import cpu as fwht
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.scalar import cpu as scalar

SPECS = [
    *((name, size) for name in ("turbo2", "turbo3", "turbo4") for size in (64, 80, 96, 128)),
    *((name, 128) for name in ("turbo2_0", "turbo3_0", "turbo4_0")),
    *((name, 128) for name in ("q8_0", "q4_0", "q8_0_rot", "q4_0_rot")),
    ("q4_0_rot", 64),
    *((f"turbo3:norm={norm}", 128) for norm in ("mse", "unbiased", "raw")),
    ("turbo2:norm=mse", 80),
    ("turbo3:rotation=none", 128),
    ("turbo3:rotation=hadamard", 96),
    ("turbo3", 40),
    ("turbo4", 16),
    ("q8_0_rot", 96),
    *((name, 128) for name in ("turbo1_tcq", "turbo2_tcq", "turbo3_tcq")),
    *((name, 128) for name in ("trellis1", "trellis2", "trellis3", "trellis4")),
    *((f"trellis2:norm={norm}", 128) for norm in ("l2", "unbiased", "raw")),
    ("trellis3:gains=5", 64),
    ("turbo2_tcq:gains=2,rotation=none", 128),
    ("trellis3", 80),
    ("trellis1_l12", 16),
    ("trellis4_l11", 40),
    ("trellis2_l12", 128),
    ("f16", 128),
    ("f16:rotation=signed", 80),
]
CODECS = {f"{spec}@{size}": make_codec(spec, size) for spec, size in SPECS}
N_GROUPS = {"turbo3@128": 100_000, "trellis3@128": 800, "turbo2_tcq@128": 1_600, "trellis2_l12@128": 32}
N_GROUPS_ELSE, N_GROUPS_TRELLIS = 800, 160


@pytest.fixture(scope="module", params=[(name, build) for name in COMPILERS for build in BUILDS], ids="-".join)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler, build = request.param
    contraction = "-ffp-contract=fast" if compiler == "gcc" else "-ffp-contract=on"
    flags = (*BUILDS[build], contraction)
    named = [(prefix_of(codec), codec) for codec in CODECS.values()]
    return build_library(named, tmp_path_factory.mktemp("library"), COMPILERS[compiler][0], flags)


@pytest.mark.parametrize("name", CODECS)
def test_same_bytes_and_floats(library: ctypes.CDLL, name: str) -> None:
    codec = CODECS[name]
    compiled = CompiledCodec(library, prefix_of(codec), codec)
    layout, centroids = codec.block_format, codec.tables()[0]
    fallback = N_GROUPS_TRELLIS if layout.is_trellis else N_GROUPS_ELSE
    groups = mixture(N_GROUPS.get(name, fallback), layout.group_size)
    expected = codec._encode_groups(groups, 0)
    assert {0, 2} <= set((expected.flags & 2).tolist()) and (expected.flags & 1).any()

    blocks, flags = compiled.encode(groups)
    np.testing.assert_array_equal(blocks, expected.blocks)
    np.testing.assert_array_equal(flags, expected.flags)

    values, rotated, single = compiled.decode(blocks)
    unrotated = rotation_for(layout.group_size, "none")
    assert_same_bits(values, scalar.decode(blocks, layout, codec.rotation, centroids))
    assert_same_bits(rotated, scalar.decode(blocks, layout, unrotated, centroids))
    assert_same_bits(single, rotated)

    queries = groups[np.isfinite(groups).all(axis=1) & (np.abs(groups).max(axis=1) < 1e30)]
    rotated, back = compiled.rotate(queries)
    assert_same_bits(rotated, fwht.rotate(queries, codec.rotation))
    assert_same_bits(back, fwht.unrotate(rotated, codec.rotation))


@pytest.mark.parametrize(
    "name", ["turbo3@128", "turbo3_0@128", "q8_0@128", "q4_0@128", "f16@128", "turbo3_tcq@128", "trellis2@128"]
)
def test_any_bytes_decode_alike(library: ctypes.CDLL, name: str) -> None:
    """Blocks that no encoder wrote, norms of infinity and NaN included; which NaN is left to the processor."""
    codec = CODECS[name]
    shape = (2_000, codec.block_format.bytes_per_group)
    blocks = np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)
    rotated = CompiledCodec(library, prefix_of(codec), codec).decode(blocks)[1]
    expected = scalar.decode(blocks, codec.block_format, rotation_for(128, "none"), codec.tables()[0])
    is_nan = np.isnan(expected)
    assert is_nan.any()
    np.testing.assert_array_equal(np.isnan(rotated), is_nan)
    np.testing.assert_array_equal(rotated[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))


def test_a_header_holds_the_viterbi_search_only() -> None:
    with pytest.raises(OptionError, match="Viterbi search only"):
        c_header(make_codec("trellis3:search=greedy", 128))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_fused_multiply_add(compiler: str, tmp_path: Path) -> None:
    """Also where no tested value shows it: the machine code has no such instruction, unlike that of plain C."""
    if platform.machine() != "x86_64":
        pytest.skip("the names of instructions are those of x86-64")
    path = require(compiler)
    names = ("turbo3@128", "turbo3@96", "q4_0@128", "q8_0_rot@128", "f16:rotation=signed@80", "trellis3@128")
    for name in names:
        (tmp_path / f"{prefix_of(CODECS[name])}.h").write_text(c_header(CODECS[name], prefix=prefix_of(CODECS[name])))
    prefixes = [prefix_of(CODECS[name]) for name in names]
    control = (
        "float control(float a, float b, float c); float control(float a, float b, float c) { return a * b + c; }\n"
    )
    uses = "".join(
        f'#include "{p}.h"\nvoid use_{p}(const float *v, {p}_block *b, float *o);\n'
        f"void use_{p}(const float *v, {p}_block *b, float *o)\n"
        f"{{ o[0] = (float){p}_encode(v, b); {p}_decode(b, o); }}\n"
        for p in prefixes
    )
    assembly = {}
    for label, source in (("header", uses), ("control", control)):
        (tmp_path / f"{label}.c").write_text(source)
        out = tmp_path / f"{label}.s"
        compile_c([path, "-O3", "-march=haswell", "-std=gnu11", "-S", tmp_path / f"{label}.c", "-o", out])
        assembly[label] = out.read_text()
    fused = ("vfmadd", "vfmsub", "vfnmadd", "vfnmsub")
    assert any(word in assembly["control"] for word in fused)
    assert not any(word in assembly["header"] for word in fused)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_sanitizers_have_nothing_to_say(compiler: str, tmp_path: Path) -> None:
    """A program of its own: AddressSanitizer cannot be loaded into a running Python."""
    path = require(compiler)
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    has_runtime = (
        subprocess.run([path, *sanitize, probe, "-o", tmp_path / "probe"], capture_output=True).returncode == 0
    )
    if not has_runtime:
        pytest.skip(f"{compiler} has no sanitizer runtime here")
    names = ["turbo3@128", "turbo2_0@128", "turbo3_0@128", "turbo4@80", "q8_0_rot@128", "q4_0_rot@128", "f16@128"]
    calls, includes = [], []
    for name in names:
        codec, p = CODECS[name], prefix_of(CODECS[name])
        size = codec.block_format.group_size
        (tmp_path / f"{p}.h").write_text(c_header(codec, prefix=p))
        mixture(320, size, seed=3).tofile(tmp_path / f"{p}.bin")
        includes.append(f'#include "{p}.h"\n')
        calls.append(
            f'{{ FILE *f = fopen("{p}.bin", "rb"); float *v = (float *)malloc({size} * sizeof(float)), *o = '
            f"(float *)malloc({size} * sizeof(float)); {p}_block *b = ({p}_block *)malloc({p.upper()}_GROUP_BYTES);\n"
            f"while (fread(v, sizeof(float), {size}, f) == {size}) {{ {p}_encode(v, b); {p}_decode(b, o); "
            f"{p}_value(b, {size - 1}); {p}_rotate(o, o); n++; }} fclose(f); free(v); free(o); free(b); }}\n"
        )
    head = "#include <stdio.h>\n#include <stdlib.h>\n"
    source = (
        head + "".join(includes) + "int main(void) { int n = 0;\n" + "".join(calls) + 'printf("%d", n); return 0; }\n'
    )
    (tmp_path / "main.c").write_text(source)
    compile_c([path, *sanitize, tmp_path / "main.c", "-o", tmp_path / "main", "-lm"])
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run([tmp_path / "main"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, str(320 * len(names)), "")
