"""Attention over a cache spread over several GPUs: each attends over its part, the first one puts them together.

By heads: a GPU has all tokens of some KV heads, and the outputs lie side by side. By tokens: a GPU has a stretch of the
tokens of all heads, and the outputs are merged by their log-sum-exps. Any number of GPUs, and of parts on one GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from turbocode.codecs.codec import Codec
from turbocode.codecs.gpu_attention import GpuAttention, merge_on_gpu
from turbocode.errors import OptionError

TOKENS_TOGETHER = 32  # a stretch of tokens begins at a multiple, so that rows begin at multiples of 16 bytes


@dataclass(frozen=True)
class SplitPlan:
    """What each part has: KV heads, or tokens, first to stop. by : `heads` or `tokens`"""

    by: str
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CachePart:
    """One part's arrays, on its GPU, as GpuAttention takes them; stream : where it attends, the current one by default

    queries : by heads, those of its own KV heads; by tokens, all
    last_token : counted in the whole sequence, in both cases
    """

    queries: Any
    key_blocks: Any
    value_blocks: Any
    last_token: Any
    stream: Any = None


def split_heads(n_kv_heads: int, n_parts: int) -> SplitPlan:
    """KV heads shared out as evenly as may be. Raises OptionError for more parts than heads."""
    if not 1 <= n_parts <= n_kv_heads:
        raise OptionError(f"{n_parts} parts of {n_kv_heads} KV heads; allowed are 1 to {n_kv_heads}")
    return SplitPlan("heads", _shared_out(n_kv_heads, n_parts, 1))


def split_tokens(n_tokens: int, n_parts: int) -> SplitPlan:
    """Tokens in stretches that begin at multiples of TOKENS_TOGETHER. Raises OptionError for too many parts."""
    most = -(-n_tokens // TOKENS_TOGETHER)
    if not 1 <= n_parts <= most:
        raise OptionError(f"{n_parts} parts of {n_tokens} tokens; allowed are 1 to {most}")
    return SplitPlan("tokens", _shared_out(n_tokens, n_parts, TOKENS_TOGETHER))


def _shared_out(n: int, n_parts: int, together: int) -> tuple[tuple[int, int], ...]:
    units = -(-n // together)
    edges = [min(number * units // n_parts * together, n) for number in range(n_parts + 1)]
    return tuple(itertools.pairwise(edges))


class SplitAttention:
    """Attends over the parts of a plan.

    key_codec, value_codec : of the whole cache; with a codebook per KV head, parts of heads use their own
    """

    def __init__(self, key_codec: Codec, value_codec: Codec, plan: SplitPlan) -> None:
        self.plan = plan
        self._attentions = []
        for first, stop in plan.parts:
            heads = slice(first, stop) if plan.by == "heads" else slice(None)
            self._attentions.append(GpuAttention(_of_heads(key_codec, heads), _of_heads(value_codec, heads)))
        self._rooms: dict[Any, tuple[Any, Any]] = {}

    def __call__(
        self,
        parts: Sequence[CachePart],
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        out: Any = None,
        lse: Any = None,
    ) -> tuple[Any, Any]:
        """(output, lse) on the first part's GPU, in its stream; nothing waits for the host.

        parts : in the order of the plan; out, lse : where to write, contiguous
        Raises OptionError for parts that do not fit the plan.
        """
        from turbocode.kernels import _launch, _peers

        if len(parts) != len(self.plan.parts):
            raise OptionError(f"{len(parts)} parts; the plan has {len(self.plan.parts)}")
        queries = [_launch.device_array(part.queries) for part in parts]
        streams = [_launch.stream_handle(part.stream, rows.stream) for part, rows in zip(parts, queries, strict=True)]
        first, (home, stream) = queries[0], (queries[0].device, streams[0])
        by_tokens = self.plan.by == "tokens"
        edges = [0, *itertools.accumulate(rows.shape[1] for rows in queries)]
        shape = (first.shape[0], first.shape[1] if by_tokens else edges[-1], *first.shape[2:])
        out = _peers.room(first, shape, first.dtype) if out is None else out
        lse = _peers.room(first, shape[:-1], "float32") if lse is None else lse
        if by_tokens:
            targets = self._room("all", first, (len(parts), *shape), "float32")
            places = [tuple(target.part(0, i) for target in targets) for i in range(len(parts))]
        else:
            targets = _launch.device_array(out), _launch.device_array(lse)
            places = [tuple(target.part(1, a, b) for target in targets) for a, b in itertools.pairwise(edges)]
        # What is written again may still be on its way to the first GPU; nobody waits for what it does from here on.
        for number, rows in enumerate(queries):
            _peers.wait_for(rows.device, streams[number], home, stream)
        found = []
        for number, (part, rows) in enumerate(zip(parts, queries, strict=True)):
            is_here = by_tokens and rows.device == home
            place = places[number]
            found.append(place if is_here else self._room(number, rows, rows.shape, place[0].dtype))
            self._attentions[number](
                *(part.queries, part.key_blocks, part.value_blocks, part.last_token),
                scale=scale,
                window=window,
                softcap=softcap,
                first_token=self.plan.parts[number][0] if by_tokens else 0,
                out=found[number][0],
                lse=found[number][1],
                stream=streams[number],
            )
        for number, rows in enumerate(queries):
            _peers.wait_for(home, stream, rows.device, streams[number])
            if found[number] is not places[number]:
                for source, target in zip(found[number], places[number], strict=True):
                    _peers.copy_to(source, target, stream)
        if by_tokens:
            merge_on_gpu(targets[0], targets[1], out=out, lse=lse, stream=stream)
        return out, lse

    def _room(self, name: Any, like: Any, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
        """Room for outputs of that shape and their log-sum-exps on the GPU of `like`, kept for the next call."""
        from turbocode.kernels import _launch, _peers

        key = name, like.device, shape, dtype
        if key not in self._rooms:
            arrays = _peers.room(like, shape, dtype), _peers.room(like, shape[:-1], "float32")
            self._rooms[key] = _launch.device_array(arrays[0]), _launch.device_array(arrays[1])
        return self._rooms[key]


def _of_heads(codec: Codec, heads: slice) -> Codec:
    """The codec with the codebooks of some KV heads."""
    return replace(codec, codebooks=codec.codebooks[heads]) if len(codec.codebooks) > 1 else codec
