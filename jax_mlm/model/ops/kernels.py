"""Attention by the libraries of accelerators: a table of kernels by name, and what each of them computes.

All return what `dense_attention` does over `visible(segments, window)` at real tokens, without scores in memory. They
need the tokens of a document side by side, as packing lays them, and padding at the end of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jax_mlm.model.ops.scores import NEGATIVE, visible

OWN = "own"
"""The name of our own attention, which runs everywhere."""
MOST_DOCUMENTS = 16
"""Most documents of a row, its padding among them, that cuDNN is given by their offsets: each costs tiles."""


class Kernels(NamedTuple):
    """Which kernel each kind of layer takes, and what they must know of the data and the devices."""

    whole: str = OWN
    """In layers that attend to the whole row."""
    near: str = OWN
    """In layers that attend to a window."""
    documents: int = 0
    """Most documents of a row, its padding being one of them; 1 where all of a row is one."""
    mesh: Mesh | None = None
    """Devices that the rows and heads are divided over; None for one device."""

    def of(self, window: int | None) -> str:
        """Return the name of the kernel for a layer."""
        return self.whole if window is None else self.near


OURS = Kernels()


class Case(NamedTuple):
    """What attention is computed of on one device."""

    platform: str
    """As `jax.default_backend()` names it."""
    dtype: str
    rows: int
    heads: int
    length: int
    head_width: int
    window: int | None
    documents: int
    """As in `Kernels`."""


Attend = Callable[[Array, Array, Array, Array, int | None, int], Array]
"""(q, k, v [B, H, S, K], segments [B, S], window, documents) → [B, H, S, K]; the queries are scaled already."""


class Kernel(NamedTuple):
    """An entry of the table."""

    fits: Callable[[Case], bool]
    """Return whether it computes such a case; what its library refuses besides is found by trying."""
    attend: Attend


# ---- cuDNN ---------------------------------------------------------------------------------------


def _library() -> Any:  # a module without types
    """Return JAX's private module of cuDNN's attention: the public function has neither offsets nor `score_mod`."""
    return import_module("jax._src.cudnn.fused_attention_stablehlo")


def _cudnn(q: Array, k: Array, v: Array, layout: str = "BNTH", **given: Any) -> Array:  # as the library takes them
    library = _library()
    if hasattr(library, "should_export_dbias"):  # else JAX before 0.11.1 computes a gradient of the mask, S × S
        library.should_export_dbias = lambda *_: False
    return library.dot_product_attention(q, k, v, scale=1.0, qkv_layout=layout, **given)


@contextmanager
def on_hopper() -> Iterator[None]:
    """Let JAX lower cuDNN's kernels for GPUs of compute capability 9.0 that are not here: it asks the one that is."""
    library = _library()
    asked: dict[str, Callable[[str], bool]] = {
        "check_compute_capability": lambda least: float(least) <= 9.0,
        "is_cuda_compute_capability_equal": lambda which: float(which) == 9.0,
    }
    before = {name: getattr(library, name) for name in asked}
    try:
        vars(library).update(asked)
        yield
    finally:
        vars(library).update(before)


def cudnn_lengths(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend to the first tokens of a row, as many as are real; what padding itself attends to is not read."""
    del window, documents
    real = jnp.maximum((segments > 0).sum(-1, dtype=jnp.int32), 1)
    every = jnp.full_like(real, q.shape[2])
    return _cudnn(q, k, v, q_seqlen=every, kv_seqlen=real, mask_type=_library().MaskType.PADDING)


def lengths_and_offsets(segments: Int[Array, "B S"], documents: int) -> tuple[Int[Array, "B M"], Int[Array, "B M1"]]:
    """Return the length of each document of a row and where it begins, −1 after the last; one offset more is unused.

    Padding is a document like any other: its output would not be written otherwise, and NaN · 0 is not 0.
    """
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
    lengths = (number[:, None, :] == jnp.arange(documents)[:, None]).sum(-1, dtype=jnp.int32)
    there = lengths > 0
    offsets = jnp.where(there, jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - lengths, -1)
    return jnp.where(there, lengths, -1), jnp.pad(offsets, ((0, 0), (0, 1)), constant_values=-1)


def cudnn_packed(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend within each document, by lengths and offsets."""
    del window
    lengths, offsets = lengths_and_offsets(segments, documents)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    where = {"q_seqlen": lengths, "kv_seqlen": lengths, "q_offsets": offsets, "kv_offsets": offsets}
    return _cudnn(q, k, v, "BTNH", mask_type=_library().MaskType.PADDING, **where).swapaxes(1, 2)


def interval(segments: Int[Array, "B S"], window: int | None) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Return the first key that each query sees, and the one after the last."""
    S = segments.shape[1]
    at = jnp.arange(S, dtype=jnp.int32)
    changes = segments[:, 1:] != segments[:, :-1]
    start = jax.lax.cummax(jnp.where(jnp.pad(changes, ((0, 0), (1, 0))), at, 0), axis=1)
    end = jax.lax.cummin(jnp.where(jnp.pad(changes, ((0, 0), (0, 1))), at + 1, S), axis=1, reverse=True)
    if window is None:
        return start, end
    return jnp.maximum(start, at - window), jnp.minimum(end, at + window + 1)


def inside(score: Float[Array, "B H S S"], start: Int[Array, "B 1 S 1"], end: Int[Array, "B 1 S 1"]) -> Array:
    """Return the score of keys in the interval, and what leaves no weight elsewhere.

    XLA translates this for cuDNN, and kills the process where it cannot: of two operands, the first must come from the
    score or an iota, and constants must not be Boolean, as the one in the gradient of `where` is.
    """
    at = jax.lax.broadcasted_iota(jnp.int32, score.shape, 3)
    seen = ((at >= start) & (at < end)).astype(jnp.float32)
    return score + (seen * -NEGATIVE + NEGATIVE)


def cudnn_flex(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend to an interval of keys, by a function of the scores that is compiled into the kernel."""
    del documents
    args = tuple(x[:, None, :, None] for x in interval(segments, window))
    return _cudnn(q, k, v, score_mod=inside, score_mod_args=args)


def cudnn_mask(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend by a mask of all pairs, in 16 bits and one for all heads."""
    del documents
    return _cudnn(q, k, v, mask=visible(segments, window))


def tokamax_intervals(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend to an interval of keys, and skip blocks of keys outside of it forward.

    Tokamax's public function takes documents as a mask of all pairs only, so its private parts are called.
    """
    del documents
    api, base = (import_module(f"tokamax._src.ops.attention.{name}") for name in ("api", "base"))
    start, end = (x[:, None] for x in interval(segments, window))
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mask = base.Mask(k_start=start, k_end=end)
    return api.IMPLEMENTATIONS["mosaic_gpu"](q, k, v, mask=mask, logits_scale=1.0).swapaxes(1, 2)


def _on_gpu(case: Case) -> bool:
    return case.platform == "gpu" and case.dtype in ("bfloat16", "float16")


def _masked(case: Case) -> bool:
    return case.documents > 1 or case.window is not None


def _has_flex() -> bool:
    return "score_mod" in inspect.signature(_library().dot_product_attention).parameters


# ---- TPU -----------------------------------------------------------------------------------------


def splash(q: Array, k: Array, v: Array, segments: Array, window: int | None, documents: int) -> Array:
    """Attend within documents, and skip blocks of keys that lie outside of the window."""
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu

    del documents
    H, S = q.shape[1:3]
    square = (S, S)
    mask = tpu.FullMask(square) if window is None else tpu.LocalMask(square, (window, window), 0)
    size = next(size for size in ((512, 256, 128) if window is None else (128,)) if S % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute")
    backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    sizes = tpu.BlockSizes(**dict.fromkeys((*names, *backward), size))
    kernel = tpu.make_splash_mha_single_device(tpu.MultiHeadMask([mask] * H), block_sizes=sizes)
    return cast(Array, jax.vmap(kernel)(q, k, v, tpu.SegmentIds(segments, segments)))


KERNELS: Mapping[str, Kernel] = {
    "cudnn lengths": Kernel(lambda case: _on_gpu(case) and not _masked(case), cudnn_lengths),
    "cudnn packed": Kernel(
        lambda case: _on_gpu(case) and case.window is None and 1 < case.documents <= MOST_DOCUMENTS, cudnn_packed
    ),
    "cudnn flex": Kernel(lambda case: _on_gpu(case) and _masked(case) and _has_flex(), cudnn_flex),
    "cudnn mask": Kernel(lambda case: _on_gpu(case) and _masked(case), cudnn_mask),
    "tokamax": Kernel(
        lambda case: _on_gpu(case) and _masked(case) and find_spec("tokamax") is not None, tokamax_intervals
    ),
    "splash": Kernel(lambda case: case.platform == "tpu" and case.length % 128 == 0, splash),
}
"""Candidates in the order in which they are tried; a new one is an entry."""


def by_kernel(
    q: Float[Array, "B H S K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    segments: Int[Array, "B S"],
    window: int | None,
    kernels: Kernels,
) -> Float[Array, "B H S K"]:
    """Attend by the kernel that was chosen for such layers, on each device for its own rows and heads."""
    kernel = KERNELS[kernels.of(window)].attend

    def one(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return kernel(q, k, v, segments, window, kernels.documents)

    if kernels.mesh is None:
        return one(q, k, v, segments)
    *rows, heads = kernels.mesh.axis_names
    each = PartitionSpec(tuple(rows), heads if q.shape[1] % kernels.mesh.shape[heads] == 0 else None)
    specs = (each, each, each, PartitionSpec(tuple(rows)))
    return jax.shard_map(one, mesh=kernels.mesh, in_specs=specs, out_specs=each, check_vma=False)(q, k, v, segments)
