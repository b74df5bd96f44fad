"""Keys that a codec would ruin: mostly one constant vector, whose coding error drowns what tells tokens apart.

A softmax does not see what all keys of a head have in common, but a codec spends its bits on it, and its error is in
proportion. Models with biased keys have lost thousands in perplexity that way (techniques 7.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turbocode.codecs import predicting
from turbocode.conversion.quantize import QuantizePlan
from turbocode.dumps import Dump

N_RUNS, RUN_TOKENS = 4, 64
MAX_LOSS = 0.5  # of the variance of the keys over tokens; plain codecs lose .003 (4 bits) to .3 (2 bits) on sound keys
MIN_CONSTANT = 1.0  # below it taking the mean away would not help


@dataclass(frozen=True)
class Danger:
    """One layer's keys: loss, the coding error over the keys' variance over tokens; constant, the norm of the mean key
    in standard deviations of a key, both of the head where the loss is greatest.
    """

    layer: str
    codec: str
    loss: float
    constant: float

    def __str__(self) -> str:
        return (
            f"keys of layer {self.layer} are {self.constant:.3g} times more constant than not, and {self.codec} loses "
            f"{self.loss:.3g} times what tells their tokens apart"
        )


def dangerous_keys(dump: Dump, plan: QuantizePlan) -> list[Danger]:
    """The layers whose keys the plan would ruin, worst first, judged by a few runs of tokens of each head.

    Raises DataError for damaged data.
    """
    found, replaced = [], dump.nonfinite_replaced
    for layer in dump.layers:
        coder, worst = plan.codecs[layer.name, "keys"], None
        if predicting(coder):
            continue  # its bias has taken the constant away
        starts = np.unique(np.linspace(0, max(0, layer.n_tokens - RUN_TOKENS), N_RUNS, dtype=np.int64))
        for head in range(dump.metadata.n_kv_heads):
            runs = [layer.read("keys", 0, head, s, min(s + RUN_TOKENS, layer.n_tokens)) for s in starts.tolist()]
            keys = np.concatenate(runs).astype(np.float64)
            variance = float(np.square(keys - keys.mean(axis=0)).sum())
            energy = float(len(keys) * np.square(keys.mean(axis=0)).sum())
            if variance <= 0 or energy <= MIN_CONSTANT**2 * variance:
                continue
            error = coder.decode(coder.encode(keys.astype(np.float32), head)[0], head) - keys
            loss = float(np.square(error - error.mean(axis=0)).sum()) / variance
            if loss > MAX_LOSS and (worst is None or loss > worst.loss):
                worst = Danger(layer.name, coder.name, loss, float(np.sqrt(energy / variance)))
        if worst is not None:
            found.append(worst)
    dump.nonfinite_replaced = replaced  # what this sample replaced is read, and counted, again
    return sorted(found, key=lambda danger: -danger.loss)
