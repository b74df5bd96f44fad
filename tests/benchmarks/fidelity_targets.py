"""What recipes that `turbocode tune` wrote do to a language model: the tables of tuned recipes in docs/fidelity.md.

    python tests/benchmarks/fidelity_targets.py MODEL --texts DIR --work DIR --out docs/benchmarks/tuned-MODEL.json

Calibrated on three texts, scored on WikiText-2 test (calibration_texts.py), in one pass, the second half of each
window; then at other lengths of context than the 2,048 tokens that were calibrated on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calibration_texts import WINDOWS, calibration_dump, corpora, scored_windows, text_digest
from benchmarks.robustness_matrix import MAX_MEMORY, recipe
from benchmarks.tuned_tables import BITS, MUST, PLAIN

from turbocode.evaluation.model_evaluation import EvaluationMode, evaluate_policies
from turbocode.integrations.hf_model import open_model
from turbocode.policies import CachePolicy, read_recipe

CONTEXTS = (1024, 2048, 4096)
SCORED = "prose"


def measured(folder: Path, texts: Path, work: Path) -> dict[str, Any]:
    """The document of one model: the main run, and the shorter table of each context length."""
    model, found = open_model(str(folder)), corpora(texts)
    dumps = [calibration_dump(model, corpus, work) for corpus in found.values()]
    reach = model.max_context
    kinds = {f"tuned {bits}": recipe(dumps, bits, work / f"{model.label}-{bits}.yaml", reach) for bits in BITS}
    policies = [CachePolicy(read_recipe(path), name=name) for name, path in kinds.items()]
    policies += [CachePolicy.of(name, name) for name in PLAIN]
    for bits in BITS:
        path = recipe(dumps, bits, work / f"{model.label}-queries-{bits}.yaml", reach, "queries")
        policies.append(CachePolicy(read_recipe(path), name=f"tuned {bits}, by queries"))
    near = recipe(dumps, 3.2, work / f"{model.label}-near.yaml", 0)
    policies.append(CachePolicy(read_recipe(near), name="tuned 3.2, reach 0"))
    windows = scored_windows(model, found[SCORED], 2)
    document = evaluate_policies(model, windows, policies, EvaluationMode(), max_memory=MAX_MEMORY)
    document["calibrated"] = {
        name: {"windows": WINDOWS[name], "text": text_digest(corpus.calibrated)} for name, corpus in found.items()
    }
    document["scored"] = text_digest(found[SCORED].scored)
    document["contexts"] = []
    for context in CONTEXTS:
        tokens = scored_windows(model, found[SCORED], max(1, 2048 // context), context)
        result = evaluate_policies(
            model, tokens, [*policies[: 2 * len(BITS)], policies[-1]], EvaluationMode(), max_memory=MAX_MEMORY
        )
        codecs = [
            {key: codec[key] for key in ("name", "kl_mean", "kl_median", "kl_p999")} for codec in result["codecs"]
        ]
        document["contexts"].append({"context": context, "n_windows": len(tokens), "codecs": codecs})
        print(model.label, context, f"{result['seconds']:.0f} s", flush=True)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for dumps and recipes, kept")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(exist_ok=True)
    document = measured(given.model, given.texts, given.work)
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    for codec in document["codecs"]:
        print(codec["name"], f"{codec['bits_per_value']:.3f} {codec['kl_mean']:.5f} {codec['kl_median']:.6f}")
    missed = [
        bits
        for bits, codec in zip(BITS, document["codecs"], strict=False)
        if document["model"] == "lm-hd128" and codec["kl_median"] > MUST[bits]
    ]
    if missed:
        sys.exit(f"median KL divergence above the bound at {missed} bits")


if __name__ == "__main__":
    main()
