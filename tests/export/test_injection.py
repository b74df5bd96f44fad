"""No name, provenance or number of a codebook, and no prefix, puts anything into a header that is not its own."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turbocode.codebooks import Codebook
from turbocode.codecs import make_codec
from turbocode.errors import DataError, OptionError
from turbocode.export import c_header
from turbocode.export.c_header import MACROS, MAX_PREFIX, NAMES
from turbocode.export.c_text import c_comment, c_float, c_ident
from turbocode.formats import block_format

CENTROIDS = np.linspace(-2, 2, 8)
HOSTILE = (
    "*/ int pwn(void){return 1;} /*",
    "x[1]={0}; int system_call",
    "// \\\nint swallowed;",
    "*??/\n/ int trigraph; /??/\n*",
    "name\n#include </etc/passwd>",
    "\r#define static",
    "{{ 7 * 7 }}{% include 'header.h.jinja' %}",
    "\u202e/* \u2028 int bidi; \x00",
    '"; #error "',
    "%s%n __attribute__((constructor)) %:include",
)
SCALAR_TURBO3 = set(NAMES) - {"base", "base_transposed", "block_check", "float_check", "table", "state", "search"}


def hostile_header(text: str, **options: str) -> str:
    codebook = Codebook(text or "empty", CENTROIDS, 0.1, {text: text, "source": text, "deep": [text]})
    return c_header(make_codec("turbo3", 128, codebooks=codebook), **options)


def skeleton(header: str) -> str:
    """The header without the comments of C, as the standard removes them: what a compiler sees."""
    text = re.sub(r"\\\n", "", header)
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


PLAIN = skeleton(hostile_header("plain"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_the_comment(text: str, tmp_path: Path) -> None:
    header = hostile_header(text)
    assert skeleton(header) == PLAIN
    assert header.isascii() and "??" not in header and "\\" not in header and "//" not in skeleton(header)
    assert declared(header, tmp_path) == {f"turbo3_128_{name}" for name in SCALAR_TURBO3}


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_stays_in_the_comment(text: str) -> None:
    header = hostile_header(text)
    assert skeleton(header) == PLAIN and header.isascii() and "??" not in header


def declared(header: str, folder: Path) -> set[str]:
    """What the preprocessed header declares: the names at file scope, system headers left out."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "a C compiler is needed"
    (folder / "h.h").write_text(header)
    command = [compiler, "-std=c11", "-E", "h.h"]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    own, is_own = [], False
    for line in text.splitlines():
        if line.startswith("# "):
            is_own = '"h.h"' in line
        elif is_own:
            own.append(line)
    source = re.sub(r"__attribute__\(\(.*?\)\)\)", "", "\n".join(own))
    while re.search(r"\{[^{}]*\}", source):
        source = re.sub(r"\{[^{}]*\}", " ", source)
    names = re.findall(r"([A-Za-z_]\w*)\s*(?:\([^()]*\)|\[\d+\]\s*=|;)", re.sub(r"_Static_assert.*?;", "", source))
    return set(names)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("text", HOSTILE[:3])
def test_object_file_has_no_other_symbol(text: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "a C compiler is needed"
    use = "int use(const float *v, float *o); int use(const float *v, float *o) { turbo3_128_block b; "
    use += "turbo3_128_decode(&b, o); o[0] = turbo3_128_value(&b, 3); turbo3_128_rotate(v, o); "
    (tmp_path / "h.c").write_text(hostile_header(text) + use + "return turbo3_128_encode(v, &b); }\n")
    subprocess.run([compiler, "-O0", "-w", "-c", "h.c", "-o", "h.o"], cwd=tmp_path, check=True)
    listing = subprocess.run(["nm", "h.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1] for line in listing.splitlines() if line.split()[-2] in "tTrRdDbB"}
    own = {f"turbo3_128_{name}" for name in SCALAR_TURBO3 - {"block"}}
    assert {re.sub(r"\.\d+$", "", name) for name in symbols} == own | {"use"}


BAD_PREFIXES = (
    *HOSTILE,
    *("", "_x", "a__b", "x_", "1a", "a b", "a-b", "int", "class", "co_await", "restrict", "threadIdx", "naïve", "ſ"),
    *("x\n", "x" * 64, "x" * (MAX_PREFIX + 1), "and", "_Bool", "a.b", "x\x00"),
)


@pytest.mark.parametrize("prefix", BAD_PREFIXES, ids=ascii)
def test_bad_prefixes_are_refused(prefix: str) -> None:
    with pytest.raises(OptionError) as caught:
        hostile_header("plain", prefix=prefix)
    assert "\n" not in str(caught.value)


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,70}", fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_a_prefix_is_refused_or_changes_nothing_else(prefix: str) -> None:
    try:
        header = hostile_header("plain", prefix=prefix)
    except OptionError:
        assert not 0 < len(prefix) <= 8 or "_" in prefix or not is_free(prefix)
        return
    names = set(re.findall(rf"\b(?:{prefix}|{prefix.upper()})_\w+", skeleton(header)))
    allowed = {f"{prefix}_{name}" for name in NAMES} | {f"{prefix.upper()}_{name}" for name in MACROS}
    assert names <= allowed and max(map(len, names)) <= 63


@pytest.mark.parametrize(
    "spec",
    [
        "turbo3@80",
        "turbo3_0@128",
        "turbo3:rotation=none@128",
        "q8_0_rot@96",
        "q4_0@64",
        "f16@128",
        "trellis3@80",
        "turbo1_tcq@128",
    ],
)
def test_every_name_is_a_known_one(spec: str, tmp_path: Path) -> None:
    name, _, size = spec.partition("@")
    header = c_header(make_codec(name, int(size)), prefix="p")
    assert declared(header, tmp_path) < {f"p_{known}" for known in NAMES}
    own = {
        macro
        for macro in MACROS
        if "STATES" not in macro or block_format(name.partition(":")[0].removesuffix("_rot")).is_trellis
    }
    assert set(re.findall(r"#define (\w+)", header)) == {f"P_{macro}" for macro in own}


def is_free(text: str) -> bool:
    try:
        return c_ident(text) == text
    except OptionError:
        return False


def test_every_float32_survives_as_text() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (np.abs(values) >= np.finfo(np.float32).tiny)]
    texts = [c_float(value) for value in [*values.tolist(), 0.0, -0.0, 1.0, -3.0, 1e10]]
    assert all(re.fullmatch(r"-?\d+(\.\d+(e[+-]\d+)?|e[+-]\d+)f", text) for text in texts)
    read = np.array([float(text[:-1]) for text in texts[: len(values)]], np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))
    assert texts[-5:] == ["0.0f", "-0.0f", "1.0f", "-3.0f", "1e+10f"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-40])
def test_numbers_without_a_literal_are_refused(value: float) -> None:
    with pytest.raises(DataError):
        c_float(value)


@pytest.mark.parametrize("extreme", [1e300, 1e-42])
def test_codebooks_beyond_float32_are_refused(extreme: float) -> None:
    centroids = CENTROIDS.copy()
    centroids[4 if extreme < 1 else 7] = extreme
    if extreme < 1:
        centroids[:4] -= 1.0
    with pytest.raises(DataError, match="turbo3"):
        c_header(make_codec("turbo3", 128, codebooks=Codebook("far", centroids, 0.1)))


def test_comment_text_is_cut() -> None:
    assert c_comment("a" * 1000) == "a" * 100
    assert c_comment("*/??/\\\n") == "-/-/-"


def test_a_header_is_always_the_same_and_of_one_head() -> None:
    codec = make_codec("turbo3", 128)
    assert c_header(codec) == c_header(make_codec("turbo3", 128))
    several = dataclasses.replace(codec, codebooks=codec.codebooks * 2)
    with pytest.raises(OptionError, match="2 heads"):
        c_header(several)
    assert c_header(several.for_head(1)) == c_header(codec)
