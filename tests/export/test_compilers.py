"""Headers compile without a warning in every language that they promise, together, twice, and in two files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from export.headers import COMPILERS, STRICT, compile_c, driver_source, require

from turbocode.codecs import make_codec
from turbocode.export import c_header, default_prefix

STANDARDS = ("c99", "c11", "c17", "c++11", "c++14", "c++17", "c++20")
SPECS = (("turbo3", 128), ("turbo2:norm=mse", 80), ("turbo3_0", 128), ("q8_0_rot", 96), ("q4_0", 64), ("f16", 128))
CODECS = [make_codec(spec, size) for spec, size in SPECS]
DOCUMENT = Path("docs/c-header.md")


@pytest.mark.parametrize("standard", STANDARDS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiles_without_a_warning(compiler: str, standard: str, tmp_path: Path) -> None:
    is_cpp = standard.startswith("c++")
    path, suffix = require(COMPILERS[compiler][is_cpp]), "cpp" if is_cpp else "c"
    prefixes = [default_prefix(codec) for codec in CODECS]
    for prefix, codec in zip(prefixes, CODECS, strict=True):
        (tmp_path / f"{prefix}.h").write_text(c_header(codec))
    includes = "".join(f'#include "{prefix}.h"\n' for prefix in prefixes)
    # One file uses everything, the other one function: what is not used must not be warned of.
    (tmp_path / f"all.{suffix}").write_text(includes * 2 + "".join(map(driver_source, prefixes)))
    main = "int main(void) { turbo3_128_block b; float v[128] = {0}; return turbo3_128_encode(v, &b); }\n"
    (tmp_path / f"main.{suffix}").write_text(includes * 2 + main)
    sources = [tmp_path / f"all.{suffix}", tmp_path / f"main.{suffix}"]
    extra = ("-Wconversion", "-Wshadow", "-Wundef")
    compile_c([path, f"-std={standard}", *STRICT, *extra, *sources, "-o", tmp_path / "program", "-lm"])
    assert subprocess.run([tmp_path / "program"]).returncode == 0


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_wrong_size_does_not_compile(compiler: str, tmp_path: Path) -> None:
    text = c_header(CODECS[0])
    broken = text.replace("uint8_t norm[2];", "uint8_t norm[4];")
    assert broken != text
    (tmp_path / "broken.h").write_text(broken)
    (tmp_path / "broken.c").write_text('#include "broken.h"\n')
    for standard in ("c99", "c11"):
        command = [require(compiler), f"-std={standard}", "-fsyntax-only", str(tmp_path / "broken.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0 and "block" in done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_fast_math_is_refused(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "turbo3.h").write_text(c_header(CODECS[0]))
    (tmp_path / "main.c").write_text('#include "turbo3.h"\n')
    command = [require(compiler), "-ffast-math", "-fsyntax-only", str(tmp_path / "main.c")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "ffast-math" in done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_example_of_the_document_runs(compiler: str, tmp_path: Path) -> None:
    example = re.search(r"```c\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "turbo3.h").write_text(c_header(CODECS[0], prefix="turbo3_128"))
    (tmp_path / "example.c").write_text(example[1])
    command = [require(compiler), "-std=c99", *STRICT, tmp_path / "example.c", "-o", tmp_path / "example", "-lm"]
    compile_c(command)
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True)
    found = re.fullmatch(r"(\d+) bytes, logit (\S+), exact (\S+)\n", done.stdout)
    assert done.returncode == 0 and found is not None
    # A logit's error has the standard deviation 0.185 |q| |k| / sqrt(256), here 87.
    assert int(found[1]) == 100 and abs(float(found[2]) - float(found[3])) < 4 * 87
