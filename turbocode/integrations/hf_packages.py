"""The one place that imports torch and transformers, and says what to install where they are missing or too old."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec

from turbocode.errors import DeviceError

INSTALL_HF = "pip install 'turbocode[hf]'"
OLDEST_TRANSFORMERS = (5, 0)
FIRST_UNKNOWN_TRANSFORMERS = (6, 0)

for _package in ("torch", "transformers"):
    if find_spec(_package) is None:
        raise DeviceError(
            f"the package {_package} is not installed; running a language model needs torch and transformers",
            hint=INSTALL_HF,
        )

import torch  # noqa: E402
import transformers  # noqa: E402


def check_version(version: str) -> None:
    """Raise DeviceError unless `version` of transformers is one whose cache interface is known here."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and OLDEST_TRANSFORMERS <= (int(numbers[1]), int(numbers[2])) < FIRST_UNKNOWN_TRANSFORMERS:
        return
    oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
    raise DeviceError(f"transformers {version} is installed; {oldest} to 5.x are supported", hint=INSTALL_HF)


check_version(transformers.__version__)
# Progress bars and advice of the package would mix with what a command prints.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# Without a network, five retries are announced before the error comes.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

__all__ = ["INSTALL_HF", "OLDEST_TRANSFORMERS", "check_version", "torch", "transformers"]
