"""A language model from a folder or the Hugging Face cache, run over chunks of tokens; nothing is trained here.

`hidden` and `logits` are apart, since a vocabulary of 150,000 words times 2,000 positions does not fit where the hidden
states of the same positions do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbocode.errors import DataError, DeviceError, NoInputError, OptionError, TurbocodeError
from turbocode.integrations.hf_attention import EAGER, AttentionCall, attention_by
from turbocode.integrations.hf_cache import check_layer_types
from turbocode.integrations.hf_packages import torch, transformers

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
PROBE_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}  # of the largest logit
PROBE_TOKENS = 5  # more than two chunks of two, and short enough for any context


@dataclass(frozen=True)
class LayerShape:
    """How a layer that owns a cache attends.

    layer_index : the model's own number; key_dim, value_dim : values in one vector; window 0 : full; softcap 0 : none
    has_sinks : whether the softmax counts a learned extra logit
    """

    layer_index: int
    n_query_heads: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int
    softcap: float
    has_sinks: bool


def open_model(name: str, *, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """The LanguageModel in folder `name`, or of that name on the Hugging Face hub or in its local cache.

    dtype : one of COMPUTE_DTYPES, in which weights are held and everything is computed; device : of torch
    Only safetensors are read and no code of the model's is run. Raises NoInputError where there is no such model,
    DataError for one that is damaged, incomplete or unknown to the transformers that is installed, DeviceError.
    """
    if dtype not in COMPUTE_DTYPES:
        raise OptionError(f"compute dtype {dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
    with loading(name) as where:
        config = transformers.AutoConfig.from_pretrained(name, **where)
        has_softcap = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **({"attn_implementation": EAGER} if has_softcap else {}),  # torch's own attention has no softcap
            **where,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(f"{len(missing)} weights are missing, {missing[0]} among them", file=name)
    return LanguageModel(name, _on_device(model.eval(), device))


def _on_device(model: Any, device: str) -> Any:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {device} is not available: this torch sees no GPU", hint="--device cpu")
    try:
        return model.to(device)
    except RuntimeError as failure:
        raise DeviceError(f"device {device} cannot be used: {_first_line(failure)}") from None


@contextmanager
def loading(name: str) -> Iterator[dict[str, Any]]:
    """Context giving the options that keep a local folder local; failures in it become one-line errors about `name`."""
    is_local = Path(name).is_dir()
    if not is_local and (Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise NoInputError("no such folder; a model is a folder in Hugging Face layout", file=name)
    if is_local and not (Path(name) / "config.json").is_file():
        raise NoInputError("holds no config.json; a model is a folder in Hugging Face layout", file=name)
    try:
        yield {"local_files_only": is_local, "trust_remote_code": False}
    except (MemoryError, KeyboardInterrupt):
        raise
    except OSError as failure:
        if is_local:
            raise DataError(f"the model cannot be loaded: {_first_line(failure)}", file=name) from None
        raise NoInputError(
            "is neither a folder here nor a model that the Hugging Face cache or hub can give",
            file=name,
            hint="give a folder in Hugging Face layout; without a network, download the model beforehand",
        ) from None
    except ImportError as failure:
        raise DeviceError(f"a package that the model needs is missing: {_first_line(failure)}", file=name) from None
    except Exception as failure:  # whatever a damaged config or weight file sets off in transformers
        raise DataError(f"the model cannot be loaded: {_first_line(failure)}", file=name) from None


def _first_line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"


class LanguageModel:
    """name; model: the transformers model; label: how dumps and tables call it."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.label = Path(name).name if Path(name).is_dir() else name
        self._cache_keyword = next(
            (word for word in ("cache", "past_key_values") if word in inspect.signature(self._body.forward).parameters),
            None,
        )
        if self._cache_keyword is None:
            raise OptionError(f"{type(model).__name__} takes no cache of keys and values")

    @property
    def _body(self) -> Any:
        """The model without its head."""
        return self.model.base_model

    @property
    def config(self) -> Any:
        """The configuration of the model, whole."""
        return self.model.config

    @property
    def text_config(self) -> Any:
        """The configuration of the decoder, where a model has several parts."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def max_context(self) -> int | None:
        """Tokens that the model's positions allow, None where it does not say."""
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def rope_theta(self) -> float:
        """Base of the rotary embedding, of the layers with full attention where there are several; 0 for none."""
        found = getattr(self.text_config, "rope_parameters", None) or {}
        found = found.get("full_attention", found)
        return float(found.get("rope_theta") or 0.0)

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """The layers that own a cache, as a few tokens through the model show them.

        Raises OptionError for a model whose attention does not go through transformers' attention interface, DataError
        for one that cannot be run.
        """
        check_layer_types(self.config)
        try:
            return self._watched_layers()
        except TurbocodeError:
            raise
        except Exception as failure:  # a config may contradict itself in ways that only running it shows
            raise DataError(f"the model cannot be run: {_first_line(failure)}", file=self.name) from None

    def _watched_layers(self) -> tuple[LayerShape, ...]:
        shapes: dict[int, LayerShape] = {}

        def look(call: AttentionCall) -> tuple[Any, Any]:
            shapes[call.layer_index] = LayerShape(
                call.layer_index,
                call.queries.shape[1],
                call.keys.shape[1],
                call.keys.shape[-1],
                call.values.shape[-1],
                call.scale,
                call.window,
                call.softcap,
                call.has_sinks,
            )
            return call.plain()

        cache = transformers.DynamicCache(config=self.config)
        probe = np.arange(1, PROBE_TOKENS + 1) % self.n_words
        with attention_by(self.model, look):
            states = self.hidden(probe, cache)
        owners = [index for index, layer in enumerate(cache.layers) if getattr(layer, "keys", None) is not None]
        unseen = [index for index in owners if index not in shapes]
        if unseen or not owners:
            raise OptionError(
                f"{type(self.model).__name__} does not attend through transformers' attention interface"
                + (f" in layer {unseen[0]}" if unseen else "")
            )
        self._check_ways(probe, states)
        return tuple(shapes[index] for index in owners)

    @property
    def n_words(self) -> int:
        """Words of the vocabulary."""
        return int(self.text_config.vocab_size)

    def _check_ways(self, probe: NDArray[Any], states: Any) -> None:
        """Raise OptionError unless body and head apart, and tokens in chunks, give what the model gives at once."""
        with torch.inference_mode():
            whole = self.model(input_ids=self._ids(probe), use_cache=False).logits[0].float().cpu().numpy()
        ways = {"its head by itself": self.logits(states)}
        for way, chunk in (("token by token", 1), ("in chunks", 2)):
            cache = transformers.DynamicCache(config=self.config)
            ways[way] = self.logits(self.hidden(probe, cache, chunk=chunk))
        bound = PROBE_TOLERANCE[str(self.model.dtype).removeprefix("torch.")] * np.abs(whole).max()
        for way, found in ways.items():
            if not np.abs(found - whole).max() <= bound:
                raise OptionError(
                    f"{type(self.model).__name__} of transformers {transformers.__version__} gives other logits {way} "
                    "than as a whole"
                )

    def _ids(self, tokens: NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64))[None].to(self.model.device)

    def hidden(self, tokens: NDArray[Any], cache: Any, *, chunk: int | None = None, first: int = 0) -> Any:
        """Hidden states (n - first, width), a tensor on the CPU, of the tokens (n,) run through `cache`.

        chunk : tokens that enter at once, all by default; first : states of earlier tokens are not kept
        """
        kept, n = [], len(tokens)
        with torch.inference_mode():
            for start in range(0, n, chunk or n):
                stop = min(n, start + (chunk or n))
                outputs = self._body(
                    input_ids=self._ids(tokens[start:stop]), use_cache=True, **{str(self._cache_keyword): cache}
                )
                if stop > first:
                    kept.append(outputs.last_hidden_state[0, max(first - start, 0) :].cpu())
            return torch.cat(kept)

    def logits(self, states: Any) -> NDArray[np.float32]:
        """Logits float32 (n, words) of hidden states (n, width), by the model's own head and what belongs to it."""
        with torch.inference_mode():
            return self.head(states).float().cpu().numpy()

    def head(self, states: Any) -> Any:
        """The same logits as a tensor where the model is, in its dtype, with gradients where they are being taken."""
        with _answering(self._body, states[None].to(self.model.device)):
            ids = torch.zeros((1, len(states)), dtype=torch.int64, device=self.model.device)
            return self.model(input_ids=ids, use_cache=False).logits[0]

    def states(self, tokens: NDArray[Any]) -> Any:
        """Hidden states (n, width) of the tokens (n,) run without a cache, where the model is; see `differentiable`."""
        return self._body(input_ids=self._ids(tokens), use_cache=False).last_hidden_state[0]

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Context in which gradients are taken of everything that comes of the embeddings, and of no weight."""
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        hook = self.model.get_input_embeddings().register_forward_hook(lambda _, __, out: out.requires_grad_(True))
        try:
            for parameter in wanted:
                parameter.requires_grad_(False)
            with torch.enable_grad():
                yield
        finally:
            hook.remove()
            for parameter in wanted:
                parameter.requires_grad_(True)


class _Answer:
    """What a body gives to its head: hidden states, and None for whatever else a head may pass on."""

    def __init__(self, states: Any) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _answering(body: Any, states: Any) -> Iterator[None]:
    """Context in which the body computes nothing and answers `states` (1, n, width)."""

    def answer(*arguments: Any, **options: Any) -> Any:
        return _Answer(states)

    before: Callable[..., Any] | None = body.__dict__.get("forward")
    body.__dict__["forward"] = answer
    try:
        yield
    finally:
        if before is None:
            del body.__dict__["forward"]
        else:
            body.__dict__["forward"] = before
