"""The keys or the values of one layer of a running model's cache: some tokens exact, the others coded once, for good.

B sequences, J KV heads, T tokens, D head_dim. A token is encoded when it leaves the residual, never again: a cache that
encodes its history over and over loses a little each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from turbocode.codecs import Codec, Coder, decode_heads, encode_heads, predicting, row_bytes, run_tokens
from turbocode.codecs.gpu_codec import GpuCodec
from turbocode.errors import DataError, OptionError
from turbocode.integrations.hf_packages import torch
from turbocode.kernels.trellis import SearchKind

Part = tuple[Coder | None, Any]


def is_on_gpu(x: Any) -> bool:
    """Whether a tensor lies where the GPU's kernels can code it."""
    return bool(x.is_cuda) and find_spec("numba_cuda") is not None


class CodedSide:
    """Tokens in order: the sinks (16 bits), the coded ones, and the residual, the latest ones (16 bits).

    Where tokens are coded in runs, the residual also holds those whose run is not whole yet.
    codec : None keeps every token exactly, in the dtype it came in
    holds_blocks : keep the coded tokens as blocks, decoded whenever they are read; else as the values that decoding the
        blocks gives, which costs the memory of an uncoded cache and saves the time
    sources : what the codec predicts from, in its order: sides with the same tokens, appended to before this one
    is_source : whether others are predicted from it, so that what `read` gives is kept until `release`
    """

    def __init__(
        self,
        codec: Coder | None,
        sinks: int,
        residual: int,
        *,
        holds_blocks: bool,
        sources: Sequence[CodedSide] = (),
        is_source: bool = False,
    ) -> None:
        self.codec, self.sinks, self.residual, self.holds_blocks = codec, sinks, residual, holds_blocks
        for source in sources:
            check_source(codec, source.codec)
        self._sources, self._is_source = sources, is_source
        self._latest: Any = None  # what `read` gave, until `release`
        self._seen = 0  # tokens appended so far, whether they are still here or not
        self._parts: dict[str, Any] = {"sinks": None, "coded": None, "residual": None}
        self._hidden = 0  # first coded tokens that are forgotten, but whose run is not
        self._dtype: Any = None
        self._n_heads = self._head_dim = 0
        self._gpu_codec: GpuCodec | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that are here."""
        return sum(part.shape[-2] for part in self._parts.values() if part is not None) - self._hidden

    @property
    def n_values(self) -> int:
        """Values that are here, over all sequences, heads and tokens."""
        n_seqs = next((part.shape[0] for part in self._parts.values() if part is not None), 0)
        return n_seqs * self.n_tokens * self._n_heads * self._head_dim

    @property
    def n_bytes(self) -> int:
        """Bytes that the tokens take, coded ones as blocks."""
        total = 0
        for name, part in self._parts.items():
            if part is None:
                continue
            if name == "coded" and self.codec is not None:
                width = row_bytes(self.codec, self._n_heads)
            else:
                width = self._n_heads * self._head_dim * part.element_size()
            total += part.shape[0] * part.shape[-2] * width
        return total

    @property
    def constant_bits(self) -> float:
        """Bits that the codec's constants add to the values here, each its share (Coder.constant_bits)."""
        return self.codec.constant_bits * self.n_values if self.codec else 0.0

    def append(self, x: Any) -> None:
        """Add the tokens x (B, J, T, D), a floating tensor. Raises DataError for what a codec cannot store."""
        self._dtype, self._latest = x.dtype, None
        self._n_heads, self._head_dim = x.shape[1], x.shape[-1]
        if self.codec is None:
            self._extend("residual", x)
            self._seen += x.shape[-2]
            return
        n_sinks = min(max(self.sinks - self._seen, 0), x.shape[-2])
        self._seen += x.shape[-2]
        if n_sinks:
            self._extend("sinks", _in_16_bits(x[..., :n_sinks, :]))
            x = x[..., n_sinks:, :]
        old = self._parts["residual"]
        held = 0 if old is None else old.shape[-2]
        leaving = max(held + x.shape[-2] - self.residual, 0)
        leaving -= leaving % run_tokens(self.codec)
        passing = max(leaving - held, 0)
        if leaving:
            entering = x[..., :passing, :]
            if held:
                entering = torch.cat([old[..., :leaving, :].to(x.dtype), entering], dim=-2)
                self._parts["residual"] = old[..., leaving:, :]
            n_coded = 0 if self._parts["coded"] is None else self._parts["coded"].shape[-2]
            self._extend("coded", self._coded(entering, n_coded))
        if x.shape[-2] > passing:
            self._extend("residual", _in_16_bits(x[..., passing:, :]))

    def _coder(self, start: int, n_seqs: int, n_tokens: int) -> Coder:
        """The codec, with its prediction for coded tokens start, start + 1, ... where it has one."""
        assert self.codec is not None
        found = predicting(self.codec)
        if found is None or not n_tokens:
            return self.codec
        start += 0 if self._parts["sinks"] is None else self._parts["sinks"].shape[-2]
        stop = start + n_tokens
        coder, predictor = found
        given = [source.read()[..., start:stop, :].float().cpu().numpy() for source in self._sources]
        # While tokens are cut off, the sources have lost them already, and what they decode to is not wanted.
        given = [np.pad(x, ((0, 0), (0, 0), (0, n_tokens - x.shape[2]), (0, 0))) for x in given]
        each = [predictor.predict([x[seq] for x in given], np.arange(start, stop)) for seq in range(n_seqs)]
        return coder.with_prediction(np.stack(each, axis=1))

    def release(self) -> None:
        """Forget what was read last: the sides that are predicted from it have been read."""
        self._latest = None

    def _coded(self, x: Any, start: int) -> Any:
        """What is kept of coded tokens start, start + 1, ...: their blocks, or the values that these decode to."""
        assert self.codec is not None
        wide = (x if x.dtype in (torch.float16, torch.float32) else x.float()).detach()
        if self._codes_on_gpu(wide):
            kept = self._encoded_on_gpu(wide.contiguous())
        else:
            coder = self._coder(start, x.shape[0], x.shape[-2])
            kept = torch.from_numpy(encode_heads(coder, wide.cpu().numpy())).to(x.device)
        return kept if self.holds_blocks else self._decoded(kept, start)

    def _decoded(self, blocks: Any, start: int = 0) -> Any:
        """The values of blocks of coded tokens start, ..., where they are, in the dtype of what was appended last."""
        assert self.codec is not None
        if self._codes_on_gpu(blocks):
            assert self._gpu_codec is not None
            values = torch.empty((*blocks.shape[:-1], self._head_dim), dtype=torch.float32, device=blocks.device)
            self._gpu_codec.decode(blocks, out=values)
            return values.to(self._dtype)
        coder = self._coder(start, blocks.shape[0], blocks.shape[-2])
        return torch.from_numpy(decode_heads(coder, blocks.cpu().numpy())).to(self._dtype).to(blocks.device)

    def _codes_on_gpu(self, x: Any) -> bool:
        """Whether x is coded on its GPU, with the same bits; transforms and searches but Viterbi's are the CPU's."""
        codec = self.codec
        if not isinstance(codec, Codec) or not is_on_gpu(x):
            return False
        is_known = not codec.block_format.is_trellis or (codec.search.kind is SearchKind.VITERBI and codec.n_gains == 1)
        if is_known and self._gpu_codec is None:
            self._gpu_codec = GpuCodec(codec)
        return is_known

    def _encoded_on_gpu(self, x: Any) -> Any:
        assert self.codec is not None and self._gpu_codec is not None
        if not torch.isfinite(x).all():
            raise DataError("a key or value is a NaN or an infinity; finite values are needed")
        blocks = torch.empty((*x.shape[:-1], self.codec.bytes_per_vector), dtype=torch.uint8, device=x.device)
        self._gpu_codec.encode(x, out=blocks)
        return blocks

    def _extend(self, name: str, more: Any) -> None:
        part = self._parts[name]
        self._parts[name] = more if part is None else torch.cat([part, more], dim=-2)

    def read(self) -> Any:
        """All tokens that are here, (B, J, T, D) in the dtype of what was appended last."""
        if self._latest is not None:
            return self._latest
        tensors = []
        for name, part in self._parts.items():
            if part is not None and part.shape[-2]:
                is_packed = name == "coded" and self.holds_blocks
                found = self._decoded(part) if is_packed else part.to(self._dtype)
                tensors.append(found[..., self._hidden :, :] if name == "coded" else found)
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-2)
        self._latest = whole if self._is_source else None
        return whole

    def packed_parts(self) -> list[Part]:
        """(codec, blocks uint8 (B, J, T, bytes)) of consecutive runs of tokens, as they are stored.

        The codec is None for runs of float16, whose bytes are the blocks of `f16`. Raises DataError where a run has no
        blocks: an exact side, or bfloat16.
        """
        parts: list[Part] = []
        for name, part in self._parts.items():
            if part is None or not part.shape[-2]:
                continue
            if name == "coded" and self.holds_blocks:
                parts.append((self.codec, part))
            elif part.dtype == torch.float16:
                parts.append((None, part.contiguous().view(torch.uint8)))
            else:
                raise DataError(f"{name} tokens in {part.dtype} have no blocks that packed attention could read")
        return parts

    def keep(self, start: int, stop: int) -> None:
        """Forget every token but start to stop, counted among those that are here."""
        removed, self._latest = self.n_tokens - stop, None
        first, cut = 0, None
        for name, part in self._parts.items():
            if part is None:
                continue
            hidden = self._hidden if name == "coded" else 0
            n = part.shape[-2] - hidden
            low, high = hidden + min(max(start - first, 0), n), hidden + max(min(stop - first, n), 0)
            if name == "coded" and self.holds_blocks and self.codec is not None and run_tokens(self.codec) > 1:
                low, high, cut = self._whole_runs(part, low, high)
            # A copy: a view would keep the forgotten tokens' memory.
            self._parts[name] = part[..., low:high, :].clone()
            first += n
        if cut is not None:
            rest = self._parts["residual"]
            self._parts["residual"] = cut if rest is None else torch.cat([cut, rest.to(cut.dtype)], dim=-2)
        self._seen -= max(removed, 0)

    def _whole_runs(self, blocks: Any, low: int, high: int) -> tuple[int, int, Any]:
        """(low, high, cut) that keep tokens low to high: blocks of whole runs, and what is left of a last one, decoded.

        A run whose first tokens go stays whole, and these are hidden; one whose last tokens go is coded again when
        others have taken their place.
        """
        assert self.codec is not None
        run = run_tokens(self.codec)
        first, last = low // run * run, max(high // run, low // run) * run
        cut = _in_16_bits(self._decoded(blocks)[..., max(low, last) : high, :]) if high > max(low, last) else None
        self._hidden = low - first if last > first else 0
        return first, last, cut

    def each(self, change: Callable[[Any], Any]) -> None:
        """Put change(part) in place of every part, a tensor (B, J, T, ...): for what concerns sequences or devices."""
        self._parts = {name: None if part is None else change(part) for name, part in self._parts.items()}
        self._latest = None


def check_source(codec: Coder | None, source: Coder | None) -> None:
    """Raise OptionError where a cache would code tokens before those of the side that they are predicted from."""
    run, other = (1 if one is None else run_tokens(one) for one in (codec, source))
    if codec is not None and run % other:
        raise OptionError(
            f"{codec.name} codes tokens in runs of {run}; a cache cannot predict them from ones in runs of {other}"
        )


def _in_16_bits(x: Any) -> Any:
    """A copy of x in float16, bfloat16 where it is that already. Raises DataError for what that cannot hold."""
    # A copy: a view would keep the memory of the whole prompt.
    narrow = x.to(x.dtype if x.dtype == torch.bfloat16 else torch.float16, copy=True)
    if not torch.isfinite(narrow).all():
        raise DataError("a key or value passes 65504 or is not finite, so that it cannot be kept in 16 bits")
    return narrow
