"""Makes multirate.json: constants, input values, block bytes and decoded values, by an implementation of its own.

    python tests/formats/golden/make_multirate.py

As make_golden.py: plain Python floats and loops from docs/formats.md, nothing of turbocode; never change its cases.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import random
import struct
from pathlib import Path

from make_golden import TABLES, f16, f32

L = 10
DOCUMENT = json.loads((TABLES / "multirate-10.json").read_text())
TABLE = [[0.0] * 1024, *([f32(value) for value in row] for row in DOCUMENT["values"])]


def packed(kind: str, numbers: list) -> bytes:
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


def inverse(matrix: list[list[float]]) -> list[list[float]]:
    n = len(matrix)
    rows = [row + [float(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = max(range(column, n), key=lambda r, c=column: abs(rows[r][c]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for r in range(n):
            if r != column:
                factor = rows[r][column]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[column], strict=True)]
    return [[f32(x) for x in row[n:]] for row in rows]


def search(u: list[float], weights: list[float], rates: list[int], shared: int | None, first: int) -> list[int]:
    """States of the best path; shared : what a state without its `first` oldest bits is at both ends."""
    costs = [0.0 if shared in (None, s >> first) else math.inf for s in range(1 << L)]
    choices = []
    for x, w, k in zip(u, weights, rates, strict=True):
        n_sets = 1 << (L - k)
        choice = [min(range(1 << k), key=lambda p, s=s, k=k: costs[s << k | p]) for s in range(n_sets)]
        best = [costs[s << k | choice[s]] for s in range(n_sets)]
        costs = [best[s % n_sets] + w * (x - TABLE[k][s]) ** 2 for s in range(1 << L)]
        choices.append((k, choice))
    state = min((s for s in range(1 << L) if shared in (None, s >> first)), key=lambda s: costs[s])
    path = []
    for k, choice in reversed(choices):
        path.append(state)
        group = state % (1 << (L - k))
        state = group << k | choice[group]
    return path[::-1]


def ring(u: list[float], weights: list[float], rates: list[int]) -> list[int]:
    n, before, behind = len(u), 0, 0
    while before < n and sum(rates[n - before :]) < 5 * L:
        before += 1
    while behind < n and sum(rates[:behind]) < 5 * L:
        behind += 1
    around = [i % n for i in range(n - before, n + behind)]
    seam = search([u[i] for i in around], [weights[i] for i in around], [rates[i] for i in around], None, 0)
    return search(u, weights, rates, seam[before - 1] >> rates[0], rates[0])


def encode(y: list[float], sigma: list[float], rates: list[int], law: str, gains: list[float]) -> tuple[int, list[int]]:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(gains)]
    if law == "whitened":
        gain = math.sqrt(sum((v / s) ** 2 for v, s in zip(y, sigma, strict=True)) / len(y))
    else:
        gain = math.sqrt(sum(v * v for v in y) / sum(s * s for s in sigma))
    tried = bisect.bisect_right(middles, gain)
    if tried == 0:
        return 0, [0] * len(y)
    path = ring([v / s / gains[tried] for v, s in zip(y, sigma, strict=True)], [s * s for s in sigma], rates)
    c = [TABLE[k][s] * scale for k, s, scale in zip(rates, path, sigma, strict=True)]
    yc, cc = sum(a * b for a, b in zip(y, c, strict=True)), sum(a * a for a in c)
    return bisect.bisect_right(middles, yc / cc if yc > 0 else 0.0), path


def case(rates: list[int], law: str, base: float, ratio: float, seed: int) -> dict:
    rng, d = random.Random(seed), 8 * len(rates)
    basis = [[rng.randrange(-127, 128) for _ in range(d)] for _ in range(d)]
    rows = [f32(2.0 ** rng.uniform(-12, -8)) for _ in range(d)]
    columns = [f32(2.0 ** rng.uniform(-3, 3)) for _ in range(d)]
    mean = [f32(rng.gauss(0, 2)) for _ in range(d)]
    matrix = [
        [f32(f32(q * row) * column) for q, column in zip(line, columns, strict=True)]
        for line, row in zip(basis, rows, strict=True)
    ]
    back = inverse(matrix)
    sigma = [f32(math.sqrt(sum(x * x for x in line)) * 2.0 ** rng.uniform(-0.3, 0.3)) for line in matrix]
    stretch = [1.0] * 9 if seed == 1 else [1.0, *(1 / (1 - nmse) for nmse in DOCUMENT["nmse"])]
    gains, gain = [0.0], base
    for _ in range(255):
        gains.append(f32(gain))
        gain *= ratio
    step_rates = [rates[i // 8] for i in range(d) if rates[i // 8]]
    coded = [i for i in range(d) if rates[i // 8]]
    values = [[f16(m + size * rng.gauss(0, 1)) for m in mean] for size in (1.0, 1.0, 0.2, 3.0, 40.0)]
    values += [[0.0] * d, [f16(m) for m in mean]]
    stored = []
    for x in values:
        y = [sum(a * (v - m) for a, v, m in zip(line, x, mean, strict=True)) for line in matrix]
        byte, path = encode([y[i] for i in coded], [sigma[i] for i in coded], step_rates, law, gains)
        digits = "".join(format(s >> (L - k), f"0{k}b")[::-1] for s, k in zip(path, step_rates, strict=True))
        digits = digits if byte else "0" * len(digits)
        block = bytes([byte]) + bytes(int(digits[k : k + 8][::-1], 2) for k in range(0, len(digits), 8))
        channels = [0.0] * d
        for i, s, k in zip(coded, path, step_rates, strict=True):
            channels[i] = TABLE[k][s] * gains[byte] * sigma[i] * stretch[k]
        decoded = [
            m + sum(b * v for b, v in zip(line, channels, strict=True)) for line, m in zip(back, mean, strict=True)
        ]
        half, single = struct.pack(f"<{d}e", *x).hex(), packed("f", decoded).hex()
        stored.append({"values": half, "block": block.hex(), "decoded": single})
    table_bytes = b"".join(packed("f", row) for row in TABLE)
    about = {"version": 1, "law": law, "gain_base": base, "gain_ratio": ratio, "searches": 1, "stretch": stretch}
    return {
        "about": {**about, "codebook_sha256": hashlib.sha256(table_bytes).hexdigest()},
        "rates": rates,
        "basis": packed("b", [q for line in basis for q in line]).hex(),
        **{
            name: packed("f", numbers).hex()
            for name, numbers in (("row_scale", rows), ("column_scale", columns), ("mean", mean), ("sigma", sigma))
        },
        "vectors": stored,
    }


def main() -> None:
    cases = [
        case([8, 7, 6, 5, 4, 3, 2, 1], "whitened", 2.0**-6, f32(2.0 ** (1 / 24)), 1),
        case([4, 3, 3, 2, 2, 1, 0, 0], "energy", 2.0**-6, f32(2.0 ** (1 / 24)), 2),
        case([0, 1, 1, 0], "whitened", 0.125, 1.0625, 3),
        case([3] * 16, "energy", 2.0**-6, f32(2.0 ** (1 / 24)), 4),
    ]
    Path(__file__).with_name("multirate.json").write_text(json.dumps(cases, indent=0) + "\n")


if __name__ == "__main__":
    main()
