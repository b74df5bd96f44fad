"""Makes golden.json: input values, block bytes and decoded values, by an implementation of its own.

    python tests/formats/golden/make_golden.py

Plain Python floats (float64) and loops, written from docs/formats.md; it imports nothing of turbocode. The tests never
run it. A change of the file means that stored blocks of a release may no longer be read: add cases, never change them.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
from pathlib import Path

import numpy as np

# The shipped codebooks, as numbers: what they should be is tests/training's business.
TABLES = Path(__file__).parents[3] / "turbocode" / "codebooks" / "tables"
BITS = {"turbo2": 2, "turbo3": 3, "turbo4": 4}


def f32(x: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def f16_bytes(x: float) -> bytes:
    return struct.pack("<e", max(-65504.0, min(65504.0, x)))


def f16(x: float) -> float:
    return struct.unpack("<e", f16_bytes(x))[0]


def signs() -> tuple[list[int], list[int]]:
    """The published arrays, bit set where negative, least significant bit first."""
    out = []
    for text in ("59036ae44959f842bb3bc6a4a950f249", "90eeac16dc8f623f7a35a5b76265a5be"):
        data = bytes.fromhex(text)
        out.append([-1 if data[j // 8] >> (j % 8) & 1 else 1 for j in range(128)])
    return out[0], out[1]


def hadamard(order: int) -> list[list[int]]:
    base = {80: 20, 40: 20, 96: 12, 48: 12}.get(order, 1)
    if base == 1:
        matrix = [[1]]
    else:
        q = base - 1
        squares = {i * i % q for i in range(1, q)}
        chi = [0] + [1 if i in squares else -1 for i in range(1, q)]
        matrix = [[1] * base]
        for i in range(q):
            matrix.append([-1] + [chi[(i - j) % q] + (i == j) for j in range(q)])
    n = order // base
    return [
        [matrix[r // n][c // n] * (-1) ** bin((r % n) & (c % n)).count("1") for c in range(order)] for r in range(order)
    ]


def rotate(x: list[float]) -> list[float]:
    g, (s1, s2) = len(x), signs()
    return [
        s2[r] * sum(h * s1[c] * x[c] for c, h in enumerate(row)) / math.sqrt(g) for r, row in enumerate(hadamard(g))
    ]


def unrotate(y: list[float]) -> list[float]:
    g, (s1, s2), h = len(y), signs(), hadamard(len(y))
    return [s1[c] * sum(h[r][c] * s2[r] * y[r] for r in range(g)) / math.sqrt(g) for c in range(g)]


def centroids(codec: str, group: int) -> tuple[list[float], list[float]]:
    bits = BITS[codec.removesuffix("_0")]
    name = f"gaussian-{bits}" if codec.endswith("_0") else f"sphere{group}-{bits}"
    unit = json.loads((TABLES / f"{name}.json").read_text())["centroids"]
    return [f32(c / math.sqrt(group)) for c in unit], [
        f32((a + b) / 2 / math.sqrt(group)) for a, b in itertools.pairwise(unit)
    ]


def bit_string(indices: list[int], bits: int) -> bytes:
    text = "".join(format(i, f"0{bits}b")[::-1] for i in indices)
    return bytes(int(text[k : k + 8][::-1], 2) for k in range(0, len(text), 8))


def encode_turbo(codec: str, x: list[float], mode: str) -> tuple[bytes, list[float]]:
    g, bits = len(x), BITS[codec.removesuffix("_0")]
    table, bounds = centroids(codec, g)
    norm = math.sqrt(sum(v * v for v in x))
    u = [v / norm if norm >= 2.0**-24 else 0.0 for v in rotate(x)]
    indices = [sum(1 for t in bounds if not v < t) for v in u]
    c = [table[i] for i in indices]
    cc, uc = sum(v * v for v in c), sum(a * b for a, b in zip(u, c, strict=True))
    factor = {"raw": 1.0, "l2": 1 / math.sqrt(cc), "mse": uc / cc, "unbiased": 1 / uc if uc > 0 else 0.0}[mode]
    stored = norm * factor if norm >= 2.0**-24 else 0.0
    head = f16_bytes(stored)
    if codec == "turbo2_0":
        block = b"".join(head + bit_string(indices[k : k + 32], 2) for k in range(0, g, 32))
    elif codec == "turbo3_0":
        block = b""
        for k in range(0, g, 32):
            qs, high = [0] * 8, [0] * 4
            for j, i in enumerate(indices[k : k + 32]):
                qs[j // 4] |= (i & 3) << 2 * (j % 4)
                high[j // 8] |= (i >> 2) << (j % 8)
            block += head + bytes(qs) + bytes(high)
    elif codec == "turbo4_0":
        block = head + bytes(indices[2 * j] | indices[2 * j + 1] << 4 for j in range(g // 2))
    else:
        block = head + bit_string(indices, bits)
    return block, unrotate([v * f16(stored) for v in c])


def search(u: list[float], table: list[float], bits: int, length: int, overlap: int | None) -> list[int]:
    """States of the path nearest to u, by the Viterbi algorithm; of equal costs the lowest state."""
    n_sets, costs, choices = 1 << (length - bits), [], []
    for s in range(1 << length):
        costs.append(0.0 if overlap in (None, s >> bits) else math.inf)
    for x in u:
        choice = [min(range(1 << bits), key=lambda p, s=s: costs[s << bits | p]) for s in range(n_sets)]
        best = [costs[s << bits | choice[s]] for s in range(n_sets)]
        costs = [best[s % n_sets] + (x - table[s]) ** 2 for s in range(1 << length)]
        choices.append(choice)
    ends = [s for s in range(1 << length) if overlap in (None, s >> bits)]
    state = min(ends, key=lambda s: costs[s])
    path = []
    for choice in reversed(choices):
        path.append(state)
        state = state % n_sets << bits | choice[state % n_sets]
    return path[::-1]


def encode_trellis(codec: str, x: list[float]) -> tuple[bytes, list[float]]:
    g, is_ring = len(x), codec.startswith("trellis")
    bits = int(codec[7] if is_ring else codec[5])
    length = {1: 8, 2: 8, 3: 9, 4: 10}[bits]
    name = f"{'trellis' if is_ring else 'tcq'}{bits}-{length}"
    unit = json.loads((TABLES / f"{name}.json").read_text())["values"]
    table = [f32(value / math.sqrt(g)) for value in unit]
    norm = math.sqrt(sum(v * v for v in x))
    u = [v / norm if norm >= 2.0**-24 else 0.0 for v in rotate(x)]
    if is_ring:
        a = min(g, 5 * math.ceil(length / bits))
        seam = search(([*u, *u])[g - a : g + a], table, bits, length, None)
        path = search(u, table, bits, length, seam[a - 1] >> bits)
    else:
        path = search(u, table, bits, length, None)
    if norm < 2.0**-24:
        path = [0] * g
    c = [table[s] for s in path]
    cc, uc = sum(v * v for v in c), sum(a * b for a, b in zip(u, c, strict=True))
    stored = norm * uc / cc if norm >= 2.0**-24 and uc > 0 else 0.0
    digits = "".join(format(s, f"0{length}b")[::-1][:bits] for s in path)
    if not is_ring:
        digits += format(path[-1], f"0{length}b")[::-1][bits:]
    digits += "0" * (-len(digits) % 8)
    stream = bytes(int(digits[k : k + 8][::-1], 2) for k in range(0, len(digits), 8))
    return f16_bytes(stored) + stream + (b"" if is_ring else b"\0"), unrotate([v * f16(stored) for v in c])


def encode_ggml(codec: str, x: list[float]) -> tuple[bytes, list[float]]:
    y = rotate(x) if codec.endswith("_rot") else x
    block, decoded = b"", []
    for k in range(0, len(y), 32):
        part = [f32(v) for v in y[k : k + 32]]
        if codec.startswith("q8_0"):
            d = f32(max(abs(v) for v in part) / 127)
            inverse = f32(1 / d) if d else 0.0
            scaled = [f32(v * inverse) for v in part]
            quants = [int(math.copysign(math.floor(abs(s) + 0.5), s)) for s in scaled]
            block += f16_bytes(d) + struct.pack("32b", *quants)
            decoded += [q * f16(d) for q in quants]
        else:
            extreme = 0.0  # as in ggml: the first of the largest, and of zeros the positive one
            for v in part:
                if abs(v) > abs(extreme):
                    extreme = v
            d = f32(extreme / -8)
            inverse = f32(1 / d) if d else 0.0
            quants = [min(15, int(f32(f32(v * inverse) + 8.5))) for v in part]
            block += f16_bytes(d) + bytes(quants[j] | quants[j + 16] << 4 for j in range(16))
            decoded += [(q - 8) * f16(d) for q in quants]
    return block, unrotate(decoded) if codec.endswith("_rot") else decoded


def vectors(group: int) -> list[list[float]]:
    """Seeded Gaussian groups, tricky ones, and multiples of 1/8 that make ties; all exact in float16."""
    rng = random.Random(group)
    out = [[f16(rng.gauss(0, 1)) for _ in range(group)] for _ in range(3)]
    out.append([0.0] * group)
    out.append([f16(rng.gauss(0, 1e-3)) for _ in range(group)])
    spike = [0.0] * group
    spike[5] = -3.0
    out.append(spike)
    ties = [rng.randrange(-12, 13) / 8 for _ in range(group)]
    ties[0], ties[1] = -127 / 8, -0.0
    out.append(ties)
    out.append([f16(3.0 + rng.gauss(0, 0.5)) for _ in range(group)])
    return out + (limits(group, rng) if group == 128 else [])


def limits(group: int, rng: random.Random) -> list[list[float]]:
    """A norm above 65504, the smallest norm that is not stored as zero, negative zeros, and extremes of both signs."""
    spike = [0.0] * group
    spike[group - 1] = 2.0**-24
    extremes = [rng.randrange(-7, 8) / 8 for _ in range(group)]
    for start in range(0, group, 32):
        sign = 1.0 if start % 64 else -1.0
        extremes[start + 3], extremes[start + 20] = sign, -sign
    return [[f16(rng.gauss(0, 2e4)) for _ in range(group)], spike, [-0.0] * group, extremes]


def main() -> None:
    cases = []
    for codec in (
        "turbo2",
        "turbo3",
        "turbo4",
        "turbo2_0",
        "turbo3_0",
        "turbo4_0",
        "q8_0",
        "q4_0",
        "q8_0_rot",
        "q4_0_rot",
        "f16",
    ):
        for group in (64, 80, 96, 128):
            if codec.startswith("turbo") and codec.endswith("_0") and group != 128:
                continue
            if codec.startswith("q") and group % 32:
                continue
            for mode in ("l2", "mse", "unbiased", "raw") if codec == "turbo3" else ("l2",):
                for x in vectors(group):
                    if codec == "f16":
                        block, decoded = b"".join(f16_bytes(v) for v in x), list(x)
                    elif codec.startswith("turbo"):
                        block, decoded = encode_turbo(codec, x, mode)
                    else:
                        block, decoded = encode_ggml(codec, x)
                    half = np.array(x, dtype="<f2").tobytes().hex()
                    single = np.array(decoded, dtype="<f4").tobytes().hex()
                    cases.append(
                        {"codec": codec, "norm": mode, "values": half, "blocks": block.hex(), "decoded": single}
                    )
    trellises = [(f"trellis{bits}", group) for bits in (1, 2, 3, 4) for group in (64, 128)]
    for codec, group in [*trellises, *((f"turbo{bits}_tcq", 128) for bits in (1, 2, 3))]:
        for x in vectors(group):
            block, decoded = encode_trellis(codec, x)
            half, single = np.array(x, dtype="<f2").tobytes().hex(), np.array(decoded, dtype="<f4").tobytes().hex()
            cases.append({"codec": codec, "norm": "mse", "values": half, "blocks": block.hex(), "decoded": single})
    Path(__file__).with_name("golden.json").write_text(json.dumps(cases, indent=0) + "\n")


if __name__ == "__main__":
    main()
