"""What prediction from the layer below (`aqua`) in front of trellises does to a language model, on three kinds of text.

    python tests/benchmarks/layer_prediction.py MODEL --texts DIR --out docs/benchmarks/prediction-MODEL.json

One calibration, on pieces of the three calibrated texts in turn (calibration_texts.py), scored on other text of each
kind beside the plain trellises. The last layer's keys have one bit less, which makes up for the weights, so that no
recipe has more than 2.2, 3.2 and 4.2 bits a value, all constants counted over 32,768 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calibration_texts import CONTEXT, corpora, scored_windows, text_digest
from benchmarks.robustness_matrix import MAX_MEMORY

from turbocode.dumps import open_dump
from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.integrations.hf_capture import CaptureSpec, capture_dump
from turbocode.integrations.hf_model import open_model
from turbocode.integrations.hf_text import TextTokens
from turbocode.policies import CachePolicy, read_recipe
from turbocode.training.calibrate import calibrate_dump, parse_transforms

PIECE = 9000  # characters of each text in turn
WINDOWS = 8  # that are calibrated on
SCORED = {"prose": 2, "code": 1, "fiction": 1}  # windows
BITS = (2, 3, 4)
FIGURES = ("bits_per_value", "kl_mean", "kl_median", "kl_p999")


def mixed_text(texts: Path) -> str:
    """Pieces of the calibrated texts in turn."""
    parts = [corpus.calibrated for corpus in corpora(texts).values()]
    return "\n\n".join(part[first : first + PIECE] for first in range(0, WINDOWS * PIECE, PIECE) for part in parts)


def measured(folder: Path, texts: Path, work: Path) -> dict[str, Any]:
    """The document of one model: a row for each scored text and policy."""
    model, text, dump = open_model(str(folder)), mixed_text(texts), work / "fit.h5"
    (work / "mixed.txt").write_text(text, encoding="utf-8")
    tokens = TextTokens(model, work / "mixed.txt", text)
    capture_dump(model, tokens, dump, CaptureSpec(CONTEXT, WINDOWS, n_rows=16))
    chain = parse_transforms("aqua")
    with open_dump(dump) as source:
        calibrate_dump(source, work / "aqua.h5", {"keys": [chain], "values": [chain]})
        last = source.layers[-1].name
    policies = [CachePolicy.of(f"trellis{bits}", f"trellis{bits}") for bits in BITS]
    for bits in BITS:
        recipe = {
            **{"k": f"trellis{bits}", "v": f"trellis{bits}", "calibration": "aqua.h5"},
            **{"transforms": {"k": ["aqua"], "v": ["aqua"]}, "layers": {str(int(last)): {"k": f"trellis{bits - 1}"}}},
        }
        path = work / f"aqua-{bits}.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        policies.append(CachePolicy(read_recipe(path), name=f"aqua + trellis{bits}"))
    rows = []
    for name, n_windows in SCORED.items():
        windows = scored_windows(model, corpora(texts)[name], n_windows)
        result = evaluate_policies(model, windows, policies, EvaluationMode(), max_memory=MAX_MEMORY)
        for number, codec in enumerate(result["codecs"]):
            plain = result["codecs"][number % len(BITS)]
            row = {"scored": name, "windows": n_windows, "codec": codec["name"]}
            row |= {key: codec[key] for key in FIGURES}
            row |= {f"ratio_{key}": codec[key] / plain[key] for key in FIGURES[1:]}
            rows.append(row)
        print(model.label, name, f"{result['seconds']:.0f} s", flush=True)
    return {"model": model.label, "calibrated": text_digest(text), "context": CONTEXT, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        document = measured(given.model, given.texts, Path(work))
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    print("| scored text | codec | bits per value | KL mean | KL median | KL 99.9 % | mean against the plain trellis |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in document["rows"]:
        figures = f"{row['kl_mean']:.5f} | {row['kl_median']:.6f} | {row['kl_p999']:.4f} | {row['ratio_kl_mean']:.3f}"
        print(f"| {row['scored']} | {row['codec']} | {row['bits_per_value']:.3f} | {figures} |")


if __name__ == "__main__":
    main()
