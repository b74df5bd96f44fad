"""Reads damaged copies of one file and prints how each ended; run as its own process, so that a crash is visible.

usage: damage_worker.py ORIGINAL WORK {flips|mutations} SEED COUNT
Each copy must end in a TurbocodeError or in the very content of the original; anything else is printed and counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from turbocode.dumps import file_kind, open_dump, open_quantized
from turbocode.errors import TurbocodeError

HANG_SECONDS = 5.0


def content(path: Path) -> list[object]:
    if file_kind(path) == "dump":
        with open_dump(path) as dump:
            return [dump.content_sha256(), *(layer.query_positions().tolist() for layer in dump.layers)]
    with open_quantized(path) as file:
        facts: list[object] = [file.metadata, file.recipe, file.provenance, file.dump_sha256]
        for layer in file.layers:
            facts += [layer.name, layer.layer_index, layer.window, layer.softcap, layer.n_seqs, layer.n_tokens]
            for name in ("keys", "values"):
                side = layer.side(name)
                facts += [side.codec, side.report, side.stored_sha256, side.compute_sha256()]
        return facts


def mutations(data: bytes, seed: int, count: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    size, out = len(data), []
    for _ in range(count):
        at = int(rng.integers(size))
        length = int(rng.integers(1, 65))
        kind = str(rng.choice(["bit", "byte", "cut", "delete", "splice", "ones", "huge", "zero"]))
        before, after = data[:at], data[at + 8 :]
        changed = {
            "bit": data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :],
            "byte": data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :],
            "cut": before,
            "delete": before + data[at + length :],
            "splice": before + data[(at * 7) % size :][:length] + data[at + length :],
            "ones": before + b"\xff" * 8 + after,
            "huge": before + (1 << 63).to_bytes(8, "little") + after,
            "zero": before + bytes(8) + after,
        }[kind]
        out.append((f"{kind} at {at}", changed))
    return out


def flips(data: bytes, seed: int, count: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    out = []
    for at in range(min(count, len(data))):
        bit = int(rng.integers(8))
        out.append((f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]))
    return out


def main() -> None:
    original, work = Path(sys.argv[1]), Path(sys.argv[2])
    make = {"flips": flips, "mutations": mutations}[sys.argv[3]]
    expected = content(original)
    ends: Counter[str] = Counter()
    bad: list[str] = []
    for number, (label, changed) in enumerate(make(original.read_bytes(), int(sys.argv[4]), int(sys.argv[5]))):
        # A fresh name each time: HDF5 recognises open files by inode.
        path = work / f"{number}.h5"
        path.write_bytes(changed)
        started = time.perf_counter()
        try:
            same = content(path) == expected
            ends["same" if same else "silent"] += 1
            if not same:
                bad.append(f"{label}: other content, no error")
        except TurbocodeError as error:
            ends[type(error).__name__] += 1
            if "\n" in str(error):
                bad.append(f"{label}: message of several lines")
        except BaseException as error:
            ends["escaped"] += 1
            bad.append(f"{label}: {type(error).__name__}: {error}")
        if time.perf_counter() - started > HANG_SECONDS:
            bad.append(f"{label}: took more than {HANG_SECONDS} s")
        path.unlink()
    print(json.dumps({"ends": ends, "bad": bad[:20], "total": sum(ends.values())}))


if __name__ == "__main__":
    main()
