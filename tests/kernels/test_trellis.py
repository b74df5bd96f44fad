"""Trellis coding: the search against exhaustive ones, the stream against strings of digits, laws of encoding."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest
from helpers.compare import assert_within
from helpers.poison import poisoned_outputs

from turbocode.codebooks import TrellisCodebook
from turbocode.codecs import CODEC_NAMES, Codec, make_codec
from turbocode.errors import OptionError
from turbocode.formats import block_format
from turbocode.formats.packing import pack_path, unpack_path
from turbocode.kernels.fwht import reference as fwht
from turbocode.kernels.scalar import NORM_MODES
from turbocode.kernels.trellis import GAINS, SearchKind, Trellis, cpu, parse_search, reference
from turbocode.kernels.trellis.add_compare_select import LANES

TRELLISES = [name for name in CODEC_NAMES if block_format(name.removesuffix("_rot"), 128).is_trellis]
STANDARD = [name for name in TRELLISES if "_l" not in name]


def all_paths(k: int, length: int, g: int) -> np.ndarray:
    """Every path int64 (n, g) of a trellis with free ends, as windows of every stream."""
    streams = np.array(list(itertools.product((0, 1), repeat=length - k + k * g)))
    windows = k * np.arange(g)[:, None] + np.arange(length)
    return (streams[:, windows] << np.arange(length)).sum(axis=-1)


def is_ring(states: np.ndarray, trellis: Trellis) -> np.ndarray:
    """Whether each path (n, g) ends in the bits that it began with."""
    rest = (1 << trellis.overlap_bits) - 1
    return (states[:, -1] >> trellis.bits) == (states[:, 0] & rest)


@pytest.mark.parametrize(
    ("k", "length", "g"), [(1, 3, 8), (1, 4, 6), (2, 4, 4), (2, 5, 4), (3, 4, 3), (3, 5, 3), (4, 6, 2)]
)
def test_viterbi_finds_the_best_of_all_paths(k: int, length: int, g: int, rng: np.random.Generator) -> None:
    paths = all_paths(k, length, g)
    free, ring = Trellis(k, length, False), Trellis(k, length, True)
    rings = paths[is_ring(paths, ring)]
    assert len(rings) == 2 ** (k * g)
    for _ in range(60):
        table, u = rng.standard_normal(1 << length), rng.standard_normal((1, g))
        cost = np.square(u - table[paths]).sum(axis=1)
        states, found = reference.viterbi(u, table, free)
        assert_within(found, cost.min(), 1e-12)
        np.testing.assert_array_equal(states[0], paths[cost.argmin()])

        cost = np.square(u - table[rings]).sum(axis=1)
        states, found = reference.tail_biting_exhaustive(u, table, ring)
        assert_within(found, cost.min(), 1e-12)
        np.testing.assert_array_equal(states[0], rings[cost.argmin()])
        states, two_pass = reference.tail_biting(u, table, ring)
        assert is_ring(states, ring).all() and (two_pass >= found - 1e-12).all()


def test_the_two_pass_search_loses_little(rng: np.random.Generator) -> None:
    """Measured: 0.11 % for this trellis; docs/benchmarks/rate-distortion.md has the shipped ones."""
    trellis, table = Trellis(2, 6, True), rng.standard_normal(64)
    u = rng.standard_normal((400, 128))
    exact = reference.tail_biting_exhaustive(u, table, trellis)[1]
    assert 1.0 <= reference.tail_biting(u, table, trellis)[1].mean() / exact.mean() < 1.01


CASES = [
    *((1, length, 128) for length in (4, 8, 11)),
    *((2, length, 64) for length in (5, 7, 8, 9)),
    *((3, length, 48) for length in (6, 7, 8, 9, 10)),
    *((4, length, 40) for length in (7, 9, 10, 11)),
    *((k, 12, 16) for k in (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("k", "length", "g"), CASES)
@pytest.mark.parametrize("is_tail_biting", [False, True])
def test_cpu_finds_the_paths_of_the_reference(
    k: int, length: int, g: int, is_tail_biting: bool, rng: np.random.Generator
) -> None:
    trellis = Trellis(k, length, is_tail_biting)
    table = rng.standard_normal(1 << length).astype(np.float32)
    u = rng.standard_normal((2 * LANES + 3, g)).astype(np.float32)
    states, costs = cpu.viterbi(u, table, trellis)
    expected, expected_costs = (reference.tail_biting if is_tail_biting else reference.viterbi)(u, table, trellis)
    np.testing.assert_array_equal(states, expected)
    assert_within(costs, expected_costs, 1e-5 * expected_costs)


@pytest.mark.parametrize(("k", "length"), [(1, 7), (2, 8), (2, 9), (3, 8), (4, 9)])
@pytest.mark.parametrize("is_tail_biting", [False, True])
def test_ties_go_to_the_lowest_state(k: int, length: int, is_tail_biting: bool, rng: np.random.Generator) -> None:
    """Small whole numbers make many paths cost exactly the same; float32 sums of them are exact."""
    trellis = Trellis(k, length, is_tail_biting)
    table = rng.integers(-2, 3, 1 << length).astype(np.float32)
    u = rng.integers(-2, 3, (LANES + 1, 64)).astype(np.float32)
    expected = (reference.tail_biting if is_tail_biting else reference.viterbi)(u, table, trellis)[0]
    np.testing.assert_array_equal(cpu.viterbi(u, table, trellis)[0], expected)


@pytest.mark.parametrize("is_tail_biting", [False, True])
def test_weights_count_squared_distances(is_tail_biting: bool, rng: np.random.Generator) -> None:
    trellis = Trellis(2, 6, is_tail_biting)
    table, u = rng.standard_normal(64).astype(np.float32), rng.standard_normal((11, 32)).astype(np.float32)
    weights = rng.uniform(0.1, 4, u.shape).astype(np.float32)
    states, costs = cpu.viterbi(u, table, trellis, weights=weights)
    assert_within(costs, (weights * np.square(u - table[states])).sum(axis=1), 1e-4)
    if not is_tail_biting:
        np.testing.assert_array_equal(states, reference.viterbi(u, table, trellis, weights=weights)[0])
    plain = cpu.viterbi(u, table, trellis)[0]
    assert ((weights * np.square(u - table[plain])).sum(axis=1) >= costs - 1e-4).all()
    assert (plain != states).any()
    ones = cpu.viterbi(u, table, trellis, weights=np.ones_like(u))
    np.testing.assert_array_equal(ones[0], plain)


def test_a_longer_approach_is_never_worse_on_average(rng: np.random.Generator) -> None:
    trellis, table = Trellis(2, 8, True), rng.standard_normal(256).astype(np.float32)
    u = rng.standard_normal((2048, 128)).astype(np.float32)
    costs = [
        cpu.viterbi(u, table, trellis, approach=approach)[1].mean() for approach in (4, 12, trellis.approach(128), 128)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < 1.015 * costs[3]


def digits_of_path(states: np.ndarray, k: int, length: int, ring: bool) -> str:
    """The stream as text, first bit first: the low bits of the states, then what is left of the last one."""
    text = "".join(format(int(state), f"0{length}b")[::-1][:k] for state in states)
    return text if ring else text + format(int(states[-1]), f"0{length}b")[::-1][k:]


@pytest.mark.parametrize("name", TRELLISES)
@pytest.mark.parametrize("group", [16, 40, 48, 64, 80, 96, 128])
def test_the_stream_is_the_one_that_a_string_of_digits_gives(name: str, group: int, rng: np.random.Generator) -> None:
    try:
        codec = make_codec(name, group)
    except OptionError:
        assert name.endswith("_tcq") and group != 128
        return
    layout, n = codec.block_format, 3 if "_l" in name else 17
    k, length, ring = layout.bits, layout.states_log2, layout.is_tail_biting
    blocks = codec.encode(rng.standard_normal((n, group)))[0].view(layout.dtype)[:, 0]
    states = unpack_path(blocks["stream"], group, k, length, is_ring=ring)
    for row, block in zip(states, blocks, strict=True):
        text = digits_of_path(row, k, length, ring)
        doubled = text + text if ring else text
        assert [int(doubled[k * t : k * t + length][::-1], 2) for t in range(group)] == row.tolist()
        padded = text + "0" * (-len(text) % 8)
        as_bytes = bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))
        assert as_bytes == block["stream"].tobytes()
        assert ring or block["pad"] == 0
    np.testing.assert_array_equal(pack_path(states, k, length, is_ring=ring), blocks["stream"])
    values = codec.tables()[0][states] * blocks["norm"].astype(np.float32)[:, None]
    np.testing.assert_array_equal(codec.decode(blocks.view(np.uint8).reshape(n, -1), unrotate=False), values)


def test_any_ring_of_bytes_is_a_path(rng: np.random.Generator) -> None:
    stream = rng.integers(0, 256, (50, 32), dtype=np.uint8)
    states = unpack_path(stream, 128, 2, 8, is_ring=True)
    assert is_ring(states, Trellis(2, 8, True)).all()
    assert ((states[:, 1:] & 63) == (states[:, :-1] >> 2)).all()
    np.testing.assert_array_equal(pack_path(states, 2, 8, is_ring=True), stream)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *zip(("turbo1_tcq", "turbo2_tcq", "turbo3_tcq"), ({128: 20}, {128: 36}, {128: 52}), strict=True),
        ("trellis1", {128: 18, 64: 10}),
        ("trellis2", {128: 34, 64: 18}),
        ("trellis3", {128: 50, 64: 26}),
        ("trellis4", {128: 66, 64: 34}),
        ("trellis3_l12", {128: 50, 64: 26}),
    ],
)
def test_sizes_of_blocks(name: str, sizes: dict[int, int]) -> None:
    for group, size in sizes.items():
        assert block_format(name, group).bytes_per_block == size
        assert block_format(name, group).group_size == group


def assert_close_costs(first: np.ndarray, second: np.ndarray) -> None:
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert len(first) <= 1


def encode_both(codec: Codec, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mode = NORM_MODES[codec.norm_mode]
    table = codec.tables()[0]
    actual = cpu.encode(x, codec.block_format, codec.rotation, table, mode).blocks
    expected = reference.encode(x, codec.block_format, codec.rotation, table, mode)
    return actual.view(codec.block_format.dtype)[:, 0], expected


@pytest.mark.parametrize("spec", [*STANDARD, "trellis3:norm=l2", "trellis2:norm=raw", "trellis2:norm=unbiased"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", ["", "rotation=none", "rotation=hadamard"])
def test_cpu_blocks_are_those_of_the_reference(spec: str, dtype: type, options: str, rng: np.random.Generator) -> None:
    codec = make_codec(f"{spec}{',' if ':' in spec else ':'}{options}" if options else spec, 128)
    x = (rng.standard_normal((19, 128)) * np.exp(rng.standard_normal((19, 1)))).astype(dtype)
    actual, expected = encode_both(codec, x)
    same = (actual["stream"] == expected["stream"]).all(axis=1)
    norm = np.linalg.norm(x.astype(np.float64), axis=1)[~same, None]
    u = fwht.rotate(x[~same].astype(np.float64), codec.rotation) / norm
    costs = [
        np.square(
            u
            - reference.dequantize(b[~same], codec.block_format, codec.tables()[0])
            / b[~same]["norm"].astype(np.float64)[:, None]
        ).sum(axis=1)
        for b in (actual, expected)
    ]
    assert_close_costs(*costs)  # paths differ only where float32 rounding decides between nearly equal ones
    ulps = np.abs(actual["norm"].view(np.int16).astype(int) - expected["norm"].view(np.int16))
    assert ulps[same].max() <= 1


@pytest.mark.parametrize("name", ["trellis1", "trellis3", "turbo2_tcq", "trellis4_l11"])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 65])
def test_groups_do_not_depend_on_their_neighbours(name: str, n: int, rng: np.random.Generator) -> None:
    codec, x = make_codec(name, 128), rng.standard_normal((n, 128)).astype(np.float32)
    x[n // 2] = 0
    blocks, _ = codec.encode(x)
    np.testing.assert_array_equal(blocks, np.concatenate([codec.encode(row[None])[0] for row in x]))
    assert not codec.decode(blocks)[n // 2].any()
    for byte in (0x00, 0xFF):
        with poisoned_outputs(byte):
            again, report = codec.encode(x)
        np.testing.assert_array_equal(again, blocks)
        assert report.zero_vectors == 1 and report.saturated_vectors == 0


def test_threads_and_chunks_do_not_change_a_byte(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, x = make_codec("trellis2", 64), rng.standard_normal((500, 64)).astype(np.float32)
    blocks, _ = codec.encode(x)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(codec.encode(x)[0], blocks)
    finally:
        numba.set_num_threads(threads)
    monkeypatch.setattr(cpu, "_CHUNK_GROUPS", 96)
    np.testing.assert_array_equal(codec.encode(x)[0], blocks)


@pytest.mark.parametrize("name", ["trellis2", "turbo3_tcq"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e25])
def test_moments_are_sums_over_the_decoded_groups(name: str, scale: float, rng: np.random.Generator) -> None:
    codec = make_codec(name, 128)
    x = (scale * rng.standard_normal((33, 128))).astype(np.float32)
    encoded = cpu.encode(x, codec.block_format, codec.rotation, codec.tables()[0], NORM_MODES["mse"])
    y = codec.decode(encoded.blocks).astype(np.float64)
    x64 = x.astype(np.float64)
    energy, error, product, decoded_energy = encoded.moments.T
    assert_within(energy, np.square(x64).sum(1), 2e-6 * np.square(x64).sum(1))
    assert_within(error, np.square(x64 - y).sum(1), 1e-3 * np.square(x64 - y).sum(1))
    assert_within(product, (x64 * y).sum(1), 4e-6 * np.linalg.norm(x64, axis=1) * np.linalg.norm(y, axis=1))
    assert_within(decoded_energy, np.square(y).sum(1), 4e-6 * np.square(y).sum(1))
    assert encoded.flags.tolist() == [1 if scale > 1e6 else 0] * 33


def test_groups_that_are_not_finite_are_flagged_and_stored_as_zero(rng: np.random.Generator) -> None:
    codec, x = make_codec("trellis3", 128), rng.standard_normal((6, 128)).astype(np.float32)
    x[1, 5], x[2, 0], x[3] = np.nan, np.inf, 3e38
    encoded = cpu.encode(x, codec.block_format, codec.rotation, codec.tables()[0], NORM_MODES["mse"])
    assert encoded.flags.tolist() == [0, 2, 2, 1, 0, 0]
    assert not codec.decode(encoded.blocks)[1:3].any()


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *(("turbo1_tcq", 0.2677), ("turbo2_tcq", 0.0733), ("turbo3_tcq", 0.0193)),
        *(("trellis1", 0.2821), ("trellis2", 0.0764), ("trellis3", 0.0201), ("trellis4", 0.00517)),
    ],
)
def test_distortion_reaches_the_aim(name: str, limit: float, rng: np.random.Generator) -> None:
    """On 4,096 groups, whose NMSE is within 1 % of that of many; the full table is rate_distortion.py's."""
    codec = make_codec(name, 128)
    report = codec.encode(rng.standard_normal((4096, 128)).astype(np.float32))[1]
    assert report.nmse < limit
    assert report.nmse > 4.0**-codec.block_format.bits


@pytest.mark.parametrize(
    ("name", "limit"), [("trellis1", 0.2733), ("trellis2", 0.0711), ("trellis3", 0.0185), ("trellis4", 0.00483)]
)
def test_more_states_reach_the_aim_too(name: str, limit: float, rng: np.random.Generator) -> None:
    x = rng.standard_normal((512, 128)).astype(np.float32)
    assert make_codec(f"{name}_l12", 128).encode(x)[1].nmse < 1.02 * limit


@pytest.mark.parametrize("name", STANDARD)
def test_encoding_again_changes_hardly_a_path(name: str, rng: np.random.Generator) -> None:
    """The decoded group is a path of the trellis; only where scaling it makes another one nearer does it move."""
    codec = make_codec(name, 128)
    first, _ = codec.encode(rng.standard_normal((512, 128)))
    again, _ = codec.encode(codec.decode(first))
    stream = slice(2, None)
    assert (first[:, stream] == again[:, stream]).all(axis=1).mean() > 0.99


@pytest.mark.parametrize("name", ["trellis1", "turbo2_tcq", "trellis3"])
def test_more_gains_never_cost_error(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((256, 128)).astype(np.float32)
    errors = []
    for n_gains in range(1, len(GAINS) + 1):
        codec = make_codec(f"{name}:gains={n_gains}", 128)
        errors.append(np.square(codec.decode(codec.encode(x)[0]) - x).sum(axis=1))
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer * (1 + 1e-3)).all()  # the stored norm is rounded to float16
    assert errors[-1].mean() < 0.998 * errors[0].mean()


def greedy(u: np.ndarray, table: np.ndarray, k: int, length: int, state: int) -> tuple[list[int], float]:
    path, cost = [], 0.0
    for x in u:
        following = [(state >> k) | (o << (length - k)) for o in range(1 << k)]
        state = min(following, key=lambda s: (x - table[s]) ** 2)
        path.append(state)
        cost += (x - table[state]) ** 2
    return path, cost


def test_cheap_searches_are_what_their_names_say(rng: np.random.Generator) -> None:
    k, length = 2, 8
    codec = make_codec("turbo2_tcq:rotation=none", 128)
    table = codec.tables()[0].astype(np.float64)
    x = rng.standard_normal((5, 128)).astype(np.float32)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    for kind in ("greedy", "multistart"):
        blocks = make_codec(f"turbo2_tcq:rotation=none,search={kind}", 128).encode(x)[0].view(codec.block_format.dtype)
        states = unpack_path(blocks["stream"][:, 0], 128, k, length, is_ring=False)
        for row, values in zip(states, u.astype(np.float64), strict=True):
            starts = range(256) if kind == "multistart" else (0,)
            path = min((greedy(values, table, k, length, start) for start in starts), key=lambda found: found[1])[0]
            assert row.tolist() == path


@pytest.mark.parametrize("name", ["turbo2_tcq", "trellis2"])
def test_searches_in_the_order_of_their_error(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 128)).astype(np.float32)
    found = ("greedy", "multistart", "beam4", "beam32", "beam256", "viterbi")
    nmse = [make_codec(f"{name}:search={search}", 128).encode(x)[1].nmse for search in found]
    assert nmse[:5] == sorted(nmse[:5], reverse=True)
    assert nmse[4] == pytest.approx(nmse[5], rel=1e-5)  # a beam of all states is the Viterbi algorithm
    for search in found[:4]:
        codec = make_codec(f"{name}:search={search}", 128)
        blocks = codec.encode(x)[0]
        measured = np.square(codec.decode(blocks) - x).sum() / np.square(x).sum()
        assert measured == pytest.approx(nmse[found.index(search)], rel=1e-4)


def test_searches_by_name() -> None:
    assert parse_search("viterbi").kind is SearchKind.VITERBI
    assert parse_search("beam16").width == 16 and str(parse_search("beam16")) == "beam16"
    for text in ("beam", "beam0", "beam5000", "beam-1", "Viterbi", "", "beam١"):
        with pytest.raises(OptionError, match="unknown search"):
            parse_search(text)


@pytest.mark.parametrize(
    "spec",
    [
        "turbo3:search=greedy",
        "q8_0:gains=2",
        "trellis3:gains=0",
        "trellis3:gains=6",
        "trellis2:search=exact",
        "f16:norm=l2",
    ],
)
def test_options_that_do_not_apply_are_refused(spec: str) -> None:
    with pytest.raises(OptionError):
        make_codec(spec, 128)


def test_codebooks_must_fit_the_trellis() -> None:
    values = np.linspace(-2, 2, 512)
    with pytest.raises(OptionError, match=r"2\*\*9 states; trellis2 needs one that is of a trellis of 2\*\*8"):
        make_codec("trellis2", 128, codebooks=TrellisCodebook("wide", 2, values, 0.1))
    with pytest.raises(OptionError, match="has 2 bits; trellis3 needs 3"):
        make_codec("trellis3", 128, codebooks=TrellisCodebook("two", 2, values, 0.1))
    with pytest.raises(OptionError, match="scalar"):
        make_codec("turbo3", 128, codebooks=TrellisCodebook("three", 3, values, 0.1))
    with pytest.raises(OptionError, match="is scalar; trellis3 needs one that is of a trellis"):
        make_codec("trellis3:codebook=gaussian-3", 128)
