"""Layer-adaptive modes 0 to 18: which layers' keys and values get a better codec (techniques 9.1).

Counted over the layers that own a cache; the lineage counted all layers of a model, which on hybrid models made several
modes the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from turbocode.errors import OptionError

N_MODES = 19
PROMOTED = "q8_0"


def promoted_layers(mode: int, windows: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """(layers, sides) that a mode promotes; sides are `kv`, `k` or `v`. windows : of each layer, 0 for full attention.

    1 first 4 and last 4; 2 last 8; 3 last 4; 4 first 4; 5 first 2 and last 2; 6 V of the last 8; 7 K of the last 8;
    8 V of the first 2 and last 2; 9 last 2; 10 K of the last 4; 11 last 6; 12 layers without a window, 13 their V;
    14 layers with a window, 15 their V; 16, 17, 18 every 4th, 3rd, 2nd layer, from layer 0.
    Raises OptionError for a mode that is not known, or one about windows in a model where all layers are alike.
    """
    n = len(windows)
    first = {1: 4, 4: 4, 5: 2, 8: 2}.get(mode, 0)
    last = {1: 4, 2: 8, 3: 4, 5: 2, 6: 8, 7: 8, 8: 2, 9: 2, 10: 4, 11: 6}.get(mode, 0)
    if not 0 <= mode < N_MODES:
        raise OptionError(f"layer mode {mode} is not known; allowed are 0 to {N_MODES - 1}")
    if mode in (12, 13, 14, 15):
        chosen = [layer for layer in range(n) if bool(windows[layer]) == (mode >= 14)]
        if len(chosen) in (0, n):
            raise OptionError(
                f"layer mode {mode} tells layers with a sliding window from those without; here all are alike"
            )
    elif mode >= 16:
        chosen = list(range(0, n, {16: 4, 17: 3, 18: 2}[mode]))
    else:
        chosen = [layer for layer in range(n) if layer < first or layer >= n - last]
    sides = "v" if mode in (6, 8, 13, 15) else "k" if mode in (7, 10) else "kv"
    return tuple(chosen), sides
