"""Options of the commands that run a language model over a text, and what they open."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from turbocode.errors import OptionError
from turbocode_cli.options import FILE, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from turbocode.integrations.hf_model import LanguageModel
    from turbocode.integrations.hf_text import TextTokens

_OPTIONS = [
    click.option(
        "--model", "model_name", required=True, metavar="DIR_OR_NAME", help="Folder or Hugging Face name of the model."
    ),
    click.option("--text", "text_path", type=FILE, required=True, metavar="FILE", help="Text to run it over, UTF-8."),
    click.option("--context", type=click.IntRange(4), default=2048, show_default=True, help="Tokens of a window."),
    click.option(
        "--skip",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Characters of the text to leave out.",
    ),
    click.option("--bos", is_flag=True, help="Begin each window with the tokenizer's first-of-text token."),
    click.option(
        "--compute-dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="In which the model computes.",
    ),
    click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where the model runs."
    ),
]
NAMES = ("model_name", "text_path", "context", "skip", "bos", "compute_dtype", "device")


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which model runs over which text, as one decorator."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_model_and_text(given: dict[str, Any], quiet: bool) -> tuple[LanguageModel, TextTokens]:
    """The model and the text that the options in `given` name. Notes go to stderr.

    Raises NoInputError, DataError, OptionError, and DeviceError where packages or a GPU are missing.
    """
    from turbocode.integrations.hf_model import open_model
    from turbocode.integrations.hf_packages import transformers
    from turbocode.integrations.hf_text import TextTokens, check_context, read_text

    written = read_text(given["text_path"], skip=given["skip"])
    device = _device(given["device"], quiet)
    model = open_model(given["model_name"], dtype=given["compute_dtype"], device=device)
    check_context(model, given["context"])
    text = TextTokens(model, given["text_path"], written)
    if text.tokenizer["agrees_with_file"] is False:
        say(
            quiet,
            f"tokenizer: {text.tokenizer['class']} of transformers {transformers.__version__} does not make the tokens "
            "that the folder's tokenizer.json says; figures depend on the release",
        )
    return model, text


def _device(name: str, quiet: bool) -> str:
    """The device as torch calls it. Raises OptionError for a name that is none."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", name) is None:
        raise OptionError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N")
    if name != "auto":
        return name
    from turbocode.integrations.hf_packages import torch

    if torch.cuda.is_available():
        say(quiet, f"device: cuda:0 ({torch.cuda.get_device_name(0)})")
        return "cuda:0"
    say(quiet, "device: cpu (torch sees no GPU)")
    return "cpu"
