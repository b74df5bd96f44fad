"""A codec whose vectors and blocks stay in GPU memory: for caches that live there."""

from __future__ import annotations

from typing import Any

from turbocode.codecs.codec import Codec
from turbocode.errors import OptionError
from turbocode.kernels.fwht import rotation_for
from turbocode.kernels.scalar import NORM_MODES, NormMode
from turbocode.kernels.trellis import SearchKind


class GpuCodec:
    """Encodes and decodes arrays of torch, CuPy or numba-cuda, or any with `__cuda_array_interface__` or DLPack.

    codec : what the blocks are. Its path search must be Viterbi's, with one gain.
    is_exact : blocks and values are the CPU's, bit for bit. Without it scalar codecs of symmetric codebooks rotate on
        the tensor cores, with a third to a half of the instructions: at most one index in a hundred thousand is off by
        one, and values by less than float16 rounds them; trellis codecs search there, with at most 0.1 % more squared
        error on Gaussian groups (docs/gpu.md).

    Kernels are compiled on their first use for a device, an input type and a kind of strides, in seconds; every later
    call takes microseconds, and can be captured in a CUDA graph. Kernels run in `stream`: by default the current one of
    torch or CuPy for their arrays, the default stream else.
    """

    def __init__(self, codec: Codec, *, is_exact: bool = True) -> None:
        from turbocode.kernels.scalar import cuda as scalar
        from turbocode.kernels.scalar.encode_tensor import is_symmetric
        from turbocode.kernels.trellis import cuda as trellis

        self.codec, self.is_exact = codec, is_exact
        form, rotation = codec.block_format, codec.rotation
        if form.is_trellis and (codec.search.kind is not SearchKind.VITERBI or codec.n_gains != 1):
            raise OptionError(
                f"{codec.name} with search {codec.search} and {codec.n_gains} gains; the GPU has viterbi with one gain",
                hint="encode on the CPU (--device cpu), or leave search and gains at their defaults",
            )
        mode = NormMode(NORM_MODES[codec.norm_mode])
        self._encoders, self._decoders, self._rotated = [], [], []
        unrotated = rotation_for(form.group_size, "none")
        for head in range(max(1, len(codec.codebooks))):
            centroids, boundaries = codec.tables(head)
            is_fast = False
            if form.is_trellis:
                table, choose = centroids, trellis.encode_choice if is_exact else trellis.fast_encode_choice
            else:
                is_fast = not is_exact and form.has_codebook and is_symmetric(centroids, boundaries)
                table = (scalar.fast_table if is_fast else scalar.scalar_table)(centroids, boundaries)
                choose = scalar.fast_encode_choice if is_fast else scalar.encode_choice
            choose_decoder = scalar.fast_decode_choice if is_fast else scalar.decode_choice
            self._encoders.append(scalar.Encoder(form, rotation, table, mode, choose))
            self._decoders.append(scalar.Decoder(form, rotation, table, choose_decoder))
            self._rotated.append(scalar.Decoder(form, unrotated, table))

    def encoder(self, head: int = 0) -> Any:
        """The kernels.scalar.cuda.Encoder of one KV head."""
        return self._encoders[head if len(self._encoders) > 1 else 0]

    def decoder(self, head: int = 0) -> Any:
        """The kernels.scalar.cuda.Decoder of one KV head."""
        return self._decoders[head if len(self._decoders) > 1 else 0]

    def encode(self, values: Any, *, out: Any = None, starts: Any = None, stream: Any = None) -> Any:
        """Blocks uint8 (..., bytes_per_vector) of float16, bfloat16 or float32 vectors (..., head_dim).

        values : up to three leading axes, (n_seqs, n_kv_heads, n_tokens), any strides but along head_dim
        out : where to write. With starts, a cache (n_seqs, n_kv_heads, capacity, bytes_per_vector) that is written in
            place, each sequence from token starts[i] on; starts is int32 (n_seqs,) in GPU memory, so that a captured
            graph can be replayed with other positions. Tokens beyond the capacity are left out.
        A group with a NaN or an infinity is stored as zeros: nothing is copied back to say so. Raises OptionError for
        host arrays, other shapes and dtypes, and rows that do not begin at multiples of 16 bytes.
        """
        if len(self._encoders) == 1:
            return self._encoders[0](values, out=out, starts=starts, stream=stream)
        if out is None:
            raise OptionError(f"{self.codec.name} has a codebook per head: give `out`, blocks for all heads")
        for head, (part, target) in enumerate(self._by_head(values, out)):
            self._encoders[head](part, out=target, starts=starts, stream=stream)
        return out

    def decode(
        self, blocks: Any, *, dtype: str = "float16", out: Any = None, unrotate: bool = True, stream: Any = None
    ) -> Any:
        """Vectors (..., head_dim) of `dtype` (float16, bfloat16, float32), or of out's, from blocks (...,
        bytes_per_vector).

        unrotate=False leaves them in the rotated basis.
        """
        decoders = self._decoders if unrotate else self._rotated
        if len(decoders) == 1:
            return decoders[0](blocks, dtype=dtype, out=out, stream=stream)
        if out is None:
            raise OptionError(f"{self.codec.name} has a codebook per head: give `out`, values for all heads")
        for head, (part, target) in enumerate(self._by_head(blocks, out)):
            decoders[head](part, out=target, stream=stream)
        return out

    def _by_head(self, source: Any, target: Any) -> list[tuple[Any, Any]]:
        from turbocode.kernels._launch import device_array

        n = len(self._encoders)
        if len(source.shape) != 4 or source.shape[1] != n or target.shape[1] != n:
            raise OptionError(
                f"{self.codec.name} has {n} codebooks, one per KV head; arrays are (n_seqs, {n}, n_tokens, ...), "
                f"given are {tuple(source.shape)} and {tuple(target.shape)}"
            )
        arrays = device_array(source), device_array(target)
        return [(arrays[0].part(1, head, head + 1), arrays[1].part(1, head, head + 1)) for head in range(n)]
