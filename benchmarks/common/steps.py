"""A training step of ours, and one of its peer in PyTorch at the same shape: built once, and taken many times.

The peer's Python need not have JAX: nothing here imports either library before it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from jax_mlm.config import Json, ModelConfig
    from jax_mlm.data.batches import Batch

MASKED = 0.15
MATRIX = 2048
"""Rows, columns and inner axis of the product that measures the rate."""
DOCUMENT, SPREAD, SHORTEST = 150, 0.8, 48
"""Tokens of documents that are packed: the median and deviation of a log-normal distribution, and the fewest."""
Step = Callable[[], Any]
"""Begins a step (or a product) and returns its loss (or a number of it), which float() waits for."""
Seconds = Callable[[], float]
"""Takes a step, and returns its seconds."""
Layout = Literal["plain", "packed", "window"]
"""Full rows; isolated documents of uneven lengths, with padding at the end; the same, and windows in most layers."""


@dataclass(frozen=True)
class Shape:
    """The shape of the model and batch on both sides."""

    width: int
    layers: int
    heads: int
    ff_width: int
    vocabulary: int
    batch: int
    length: int


SHAPES = {
    "4x256": Shape(256, 4, 4, 384, 8192, 32, 128),
    "8x512": Shape(512, 8, 8, 768, 16384, 8, 256),
    "12x768": Shape(768, 12, 12, 1152, 32768, 4, 128),
}
"""The shapes of the models that are timed on a CPU."""


def tokens(shape: Shape) -> np.ndarray:
    """Return random tokens, the same for both sides."""
    return np.random.default_rng(0).integers(5, shape.vocabulary, (shape.batch, shape.length), dtype=np.int32)


# ---- ours ----------------------------------------------------------------------------------------


def model_of(shape: Shape, layout: Layout = "plain") -> ModelConfig:
    """Return our model; its windows are those of the ModernBERT presets."""
    from jax_mlm.config import ModelConfig
    from jax_mlm.presets import PRESETS

    model = ModelConfig(
        vocab_size=shape.vocabulary, width=shape.width, layers=shape.layers, heads=shape.heads, ff_width=shape.ff_width
    )
    theirs = PRESETS["modernbert-base"].model
    windows = {"global_every": theirs.global_every, "local_window": theirs.local_window}
    return replace(model, **windows) if layout == "window" else model


def batch_of(shape: Shape, layout: Layout = "plain") -> tuple[Batch, int]:
    """Return a batch of random tokens, and the most documents of any row of its data, padding being one of them."""
    from jax_mlm.data.batches import Batch, batch_at, pack_rows
    from jax_mlm.data.token_files import TokenFiles

    if layout == "plain":
        at = np.tile(np.arange(shape.length, dtype=np.int32), (shape.batch, 1))
        return Batch(tokens(shape), np.ones_like(at), at, at, np.arange(shape.batch, dtype=np.int32)), 1
    draw, wanted = np.random.default_rng(0), 4 * shape.batch * shape.length
    sizes = np.maximum(draw.lognormal(np.log(DOCUMENT), SPREAD, wanted // SHORTEST).astype(np.int64), SHORTEST)
    ends = np.cumsum(sizes)
    documents = np.append(0, ends[: np.searchsorted(ends, wanted) + 1])
    text = draw.integers(5, shape.vocabulary, documents[-1], dtype=np.uint32)
    words = np.full(-(-len(text) // 8), 255, np.uint8)
    rows = pack_rows(TokenFiles(text, words, documents, "drawn"), _vocabulary(shape), shape.length, "document")
    return batch_at(rows, 0, 0, shape.batch), rows.documents


def _vocabulary(shape: Shape) -> Any:  # a Vocabulary
    from jax_mlm.data.tokenizer import Vocabulary

    return Vocabulary(size=shape.vocabulary, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


def our_step(
    shape: Shape, dtype: str, layout: Layout = "plain", options: Mapping[str, str | bool] | None = None
) -> tuple[Step, Json]:
    """Return our step as training runs it, or compiled with other options, and what was tried to choose its attention.

    It masks, runs forward and backward, clips, and updates by AdamW and its schedule; the batch is on the device.
    """
    import jax
    import jax.numpy as jnp

    from jax_mlm.config import MaskConfig, OptimConfig
    from jax_mlm.parallel.attention import choose_attention
    from jax_mlm.parallel.compile import compile_step
    from jax_mlm.parallel.mesh import Layout as Devices
    from jax_mlm.parallel.mesh import mesh_over
    from jax_mlm.tasks.mlm import masked_lm
    from jax_mlm.train.optim import Products, make_optimizer, make_schedule
    from jax_mlm.train.step import TrainState, init_state, make_train_step

    model, (rows, documents) = model_of(shape, layout), batch_of(shape, layout)
    mesh = mesh_over(jax.devices()[:1], Devices())
    kernels, tried = choose_attention(model, jnp.dtype(dtype), mesh, np.asarray(rows.segments), documents)
    optim, mask = OptimConfig(), MaskConfig(mask_rate=MASKED)
    tx, key = make_optimizer(optim, products=Products(jnp.dtype(dtype), mesh)), jax.random.key(0)
    task = masked_lm(model, mask, _vocabulary(shape), shape.length, jnp.dtype(dtype), kernels)
    step = make_train_step(task, tx, make_schedule(optim), key)

    def with_mean(state: TrainState, batch: Batch, horizon: jax.Array) -> tuple[TrainState, jax.Array]:
        state, metrics = step(state, batch, horizon)
        return state, metrics.loss_sum / metrics.count

    state = jax.jit(lambda key: init_state(task.init(key), tx))(key)
    batch, horizon = jax.device_put((rows, np.int32(1000)))
    lowered = jax.jit(with_mean, donate_argnums=0).lower(state, batch, horizon)
    compiled = compile_step(lowered) if options is None else lowered.compile(compiler_options=dict(options))

    def once() -> jax.Array:
        nonlocal state
        state, loss = compiled(state, batch, horizon)
        return loss

    return once, tried


def lowered_steps(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, rows: Batch, mesh: Mesh) -> Seconds:
    """Return what takes a step that was lowered ahead of it, on these rows and from random weights."""
    import jax

    from jax_mlm.parallel.mesh import make_placer

    draw, shapes = np.random.default_rng(0), lowered.args_info[0]
    state = jax.tree.map(lambda x: jax.device_put(draw.normal(0, 0.02, x.shape).astype(x.dtype)), shapes[1])
    key = jax.device_put(np.asarray(jax.random.key_data(jax.random.key(0))))
    batch = make_placer(mesh)(rows)
    controls = jax.device_put(np.int32(1000)), None, jax.device_put(np.float32(np.inf)), jax.device_put(np.int32(0))

    def take() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = compiled(key, state, batch, *controls)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    return take


def our_product(dtype: str) -> Step:
    """Return a product of matrices."""
    import jax
    import jax.numpy as jnp

    from jax_mlm.parallel.compile import compile_step

    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    product = compile_step(jax.jit(lambda x: x @ x).lower(matrix))
    return lambda: product(matrix)[0, 0]


# ---- its peer ------------------------------------------------------------------------------------


def torch_step(shape: Shape, dtype: str, compiled: bool, device: str = "cpu", masked: bool = True) -> Step:
    """Return a step of Hugging Face's model in PyTorch.

    Args:
        shape: its shape; all rows are full.
        dtype: bfloat16 is by autocast.
        compiled: whether `torch.compile` compiles the forward and backward passes.
        device: cpu or cuda.
        masked: whether the model is given the mask of full rows; without it, attention takes its fastest kernel.
    """
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ff_width,
        max_position_embeddings=1024,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    config._attn_implementation = "sdpa"
    model = ModernBertForMaskedLM(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ids = torch.from_numpy(tokens(shape)).long()
    seen: Any = torch.ones_like(ids, device=device) if masked else {"full_attention": None}
    count = int(np.ceil(MASKED * shape.length))
    at = torch.rand(ids.shape).topk(count, dim=1).indices.sort(dim=1).values
    chosen = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, at, True)
    hidden, targets = torch.where(chosen, 4, ids).to(device), ids[chosen].to(device)
    positions = (torch.arange(shape.batch)[:, None] * shape.length + at).reshape(-1).to(device)

    def loss_of() -> torch.Tensor:
        states = model.model(input_ids=hidden, attention_mask=seen)[0].reshape(-1, shape.width)[positions]
        return torch.nn.functional.cross_entropy(model.decoder(model.head(states)).float(), targets)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def once() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return once


def torch_product(dtype: str) -> Step:
    """Return a product of matrices on the CPU."""
    import torch

    matrix = torch.ones(MATRIX, MATRIX, dtype=getattr(torch, dtype))
    return lambda: (matrix @ matrix)[0, 0]
