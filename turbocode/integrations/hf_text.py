"""Text into windows of tokens, by the model's own tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, OptionError
from turbocode.integrations.hf_model import LanguageModel, loading
from turbocode.integrations.hf_packages import transformers
from turbocode.text_input import read_text_input

MAX_TEXT_BYTES = 256 << 20
_COMPARED_CHARACTERS = 4096


def read_text(path: str | os.PathLike[str], *, skip: int = 0) -> str:
    """The text of a file without its first `skip` characters. Raises NoInputError and DataError."""
    return read_text_input(path, max_bytes=MAX_TEXT_BYTES)[skip:]


class TextTokens:
    """The tokens of a text file: ids int64 (n,), without any token that the text does not hold.

    path, name : of the file; tokenizer : facts about what made the tokens
    """

    def __init__(self, model: LanguageModel, path: str | os.PathLike[str], text: str) -> None:
        """text : what `read_text` gave for `path`. Raises NoInputError and DataError for the model's tokenizer."""
        with loading(model.name) as where:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model.name, **where)
        self.path, self.name = os.fspath(path), Path(path).name
        self.ids: NDArray[np.int64] = np.array(
            self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
        )
        if self.ids.size and self.ids.max() >= model.n_words:
            raise DataError(
                f"its tokenizer knows token {self.ids.max()}; it has {model.n_words} words", file=model.name
            )
        self.tokenizer = {
            "class": type(self._tokenizer).__name__,
            "agrees_with_file": self._agrees_with_file(model.name, text[:_COMPARED_CHARACTERS]),
        }

    def _agrees_with_file(self, folder: str, text: str) -> bool | None:
        """Whether tokenizer.json of the folder, read by itself, makes the same tokens; None where there is none.

        Classes of transformers may put rules of their own in the place of the file's, from one release to the next.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            return None
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(os.fspath(path)).encode(text, add_special_tokens=False).ids
        return bool(plain == self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def windows(self, n_windows: int, context: int, *, bos: bool = False) -> NDArray[np.int64]:
        """Tokens int64 (n_windows, context): consecutive runs from the start of the text.

        bos : put the tokenizer's first-of-text token in the place of each window's first, as llama-perplexity does
        Raises DataError if the text is too short, OptionError if the tokenizer has no such token.
        """
        needed = n_windows * context
        if len(self.ids) < needed:
            raise DataError(
                f"{len(self.ids):,} tokens of text; {n_windows} windows of {context:,} need {needed:,}",
                file=self.path,
                hint="fewer --windows, a shorter --context or less --skip",
            )
        found = self.ids[:needed].reshape(n_windows, context).copy()
        if bos:
            if self._tokenizer.bos_token_id is None:
                raise OptionError("the tokenizer has no token for the beginning of a text; leave --bos out")
            found[:, 0] = self._tokenizer.bos_token_id
        return found


def check_context(model: LanguageModel, context: int) -> None:
    """Raise OptionError for a context that the model's positions do not allow."""
    if model.max_context is not None and context > model.max_context:
        raise OptionError(f"a context of {context:,} tokens is asked for; {model.label} allows {model.max_context:,}")
