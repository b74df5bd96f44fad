"""Texts and dumps of the calibration experiments: what is calibrated on, what is scored, and never the same part.

Prose is WikiText-2 (valid is calibrated on, test is scored), fiction Pride and Prejudice (first half, second half),
code modules of the standard library of the Python that runs this (two disjoint lists).
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from turbocode.integrations.hf_capture import CaptureSpec, capture_dump
from turbocode.integrations.hf_model import LanguageModel
from turbocode.integrations.hf_text import TextTokens

CONTEXT = 2048
CODE_CALIBRATED = ("argparse", "tarfile", "inspect", "typing", "subprocess", "datetime", "logging/__init__")
CODE_SCORED = ("_pydecimal", "zipfile", "doctest", "optparse", "difflib", "shutil", "statistics")
WINDOWS = {"prose": 8, "code": 8, "fiction": 4}  # that are calibrated on


@dataclass(frozen=True)
class Corpus:
    """name; calibrated and scored: the two texts."""

    name: str
    calibrated: str
    scored: str


def corpora(texts: Path) -> dict[str, Corpus]:
    """The three corpora; texts: the folder with wikitext2_*.txt and pride_and_prejudice.txt."""
    pride = (texts / "pride_and_prejudice.txt").read_text(encoding="utf-8")
    half = pride.index("\n\n", len(pride) // 2)
    prose = ((texts / f"wikitext2_{part}.txt").read_text(encoding="utf-8") for part in ("valid", "test"))
    return {
        "prose": Corpus("prose", *prose),
        "code": Corpus("code", _modules(CODE_CALIBRATED), _modules(CODE_SCORED)),
        "fiction": Corpus("fiction", pride[:half], pride[half:]),
    }


def _modules(names: tuple[str, ...]) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [library / f"{name}.py" for name in names]
    found = [path if path.exists() else path.with_suffix("") / "__init__.py" for path in found]
    return "\n".join(path.read_text(encoding="utf-8") for path in found)


def calibration_dump(model: LanguageModel, corpus: Corpus, folder: Path) -> Path:
    """The dump of a corpus's calibrated text, with Fisher information; taken once, then kept in `folder`."""
    path = folder / f"{model.label}-{corpus.name}.h5"
    text = folder / f"{corpus.name}.txt"
    if not text.exists() or text.read_text(encoding="utf-8") != corpus.calibrated:
        text.write_text(corpus.calibrated, encoding="utf-8")
        path.unlink(missing_ok=True)
    if not path.exists():
        tokens = TextTokens(model, text, corpus.calibrated)
        capture_dump(model, tokens, path, CaptureSpec(CONTEXT, WINDOWS[corpus.name], n_rows=64, fisher=True))
    return path


def scored_windows(model: LanguageModel, corpus: Corpus, n_windows: int, context: int = CONTEXT) -> np.ndarray:
    """Tokens int64 (n_windows, context) of a corpus's scored text."""
    return TextTokens(model, f"{corpus.name}-scored", corpus.scored).windows(n_windows, context)


def text_digest(text: str) -> str:
    """What tells in a document which text it was: 16 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
