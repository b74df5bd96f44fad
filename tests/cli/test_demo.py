"""The demo runs every step on the shipped dump and leaves what it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def demo(tmp_path: Path, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    import os

    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}"}
    command = [sys.executable, "-m", "turbocode_cli", "demo", "-o", str(tmp_path / "out"), *options]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_demo_does_the_main_job(tmp_path: Path) -> None:
    run = demo(tmp_path)
    assert run.returncode == 0, run.stderr
    for step in ("inspect", "train-codebook", "quantize", "attend compare", "verify", "dequantize", "export header"):
        assert f"$ turbocode {step}" in run.stdout
    out = tmp_path / "out"
    for name in ("trained-3.json", "trained-3.png", "turbo3.h", "turbo3.h5", "decoded.h5", "error-by-rate.png"):
        assert (out / name).stat().st_size > 0
    rows = {row["codec"]: row for row in json.loads((out / "codecs.json").read_text())["codecs"]}
    assert rows["turbo4"]["kl_mean"] < rows["turbo3"]["kl_mean"] < rows["turbo2"]["kl_mean"]
    assert rows["turbo3"]["output_error_k"] < rows["turbo3:rotation=none"]["output_error_k"]
    assert rows["f16"]["kl_mean"] == 0.0


def test_demo_prints_one_document(tmp_path: Path) -> None:
    run = demo(tmp_path, "--json", "--quiet")
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout)["codecs"]) == 11


def test_demo_outside_a_checkout_says_what_to_do(tmp_path: Path) -> None:
    run = demo(tmp_path, cwd=tmp_path)
    assert run.returncode == 66
    assert run.stderr.splitlines()[0] == "turbocode: error: data/tiny-pride.h5: no such file"
    assert not (tmp_path / "out").exists()
