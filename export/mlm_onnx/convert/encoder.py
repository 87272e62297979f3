"""The encoder in ONNX, with one method for each module of `jax_mlm.model.encoder`."""

from __future__ import annotations

import numpy as np

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import KEPT, Params
from jax_mlm.model.params import leaves
from mlm_onnx.convert.onnx_file import Graph
from mlm_onnx.convert.precision import Precision

NEGATIVE = -1e30
"""Added to the score of a pair that may not attend; its exponential is exactly 0 in float32."""


class OnnxEncoder:
    """The encoder as nodes of a graph; each method corresponds to one module of `jax_mlm.model`.

    Without `mask`, every token of a row sees all the others; without `types`, all tokens have type 0. `fused` uses the
    operators of FUSED_OPSET, which onnxruntime runs faster but other runtimes may not know yet.
    """

    def __init__(
        self,
        g: Graph,
        c: ModelConfig,
        params: Params,
        precision: Precision,
        ids: str,
        mask: str | None = None,
        types: str | None = None,
        fused: bool = False,
    ) -> None:
        self.g, self.c, self.arrays, self.precision, self.ids = g, c, leaves(params), precision, ids
        self.fused = fused
        self.types, self.mask = types, mask
        self.padding = None if mask is None else g.op("Unsqueeze", g.op("Equal", mask, g.int(0)), g.ints(1, 2))
        self.length = g.op("Shape", ids, start=1, end=2)  # [S] as a vector of one element
        self.attended: list[str] = []
        """The attention weights of each layer so far, [B, H, S, S]."""
        self._positions: str | None = None
        self._ropes: dict[tuple[float, str | None], tuple[str, str]] = {}
        self._full_ropes: dict[tuple[float, str | None], tuple[str, str]] = {}
        self._biases: dict[tuple[int | None, str | None], str | None] = {}

    # ---- parts -----------------------------------------------------------------------------------

    def array(self, *path: str) -> np.ndarray | None:
        """Return the parameter at a path in the tree of `jax_mlm.model`; None if the config has none."""
        array = self.arrays.get(path)
        return None if array is None else np.asarray(array, np.float32)

    def dense(self, x: str, *path: str, columns: slice = slice(None), part: str = "") -> str:
        """Add a dense layer, or only some of its output columns."""
        kernel, bias = self.array(*path, "kernel"), self.array(*path, "bias")
        assert kernel is not None
        bias = None if bias is None else bias[columns]
        return self.precision.linear(self.g, x, ".".join(path) + part, kernel[:, columns], bias)

    def norm(self, x: str, *path: str) -> str:
        g, c = self.g, self.c
        scale, bias = self.array(*path, "scale"), self.array(*path, "bias")
        assert scale is not None
        weight = g.weight(".".join((*path, "scale")), scale)
        if c.norm == "layer":
            extra = () if bias is None else (g.weight(".".join((*path, "bias")), bias),)
            return g.op("LayerNormalization", x, weight, *extra, axis=-1, epsilon=c.norm_eps)
        if self.fused:
            return g.op("RMSNormalization", x, weight, axis=-1, epsilon=c.norm_eps)
        mean = g.op("ReduceMean", g.op("Pow", x, g.scalar(2.0)), g.ints(-1), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.scalar(c.norm_eps)))
        return g.op("Mul", g.op("Div", x, root), weight)

    def activate(self, x: str, name: str) -> str:
        match name:
            case "gelu":
                return self.g.op("Gelu", x, approximate="none")
            case "gelu_tanh":
                return self.g.op("Gelu", x, approximate="tanh")
            case "relu":
                return self.g.op("Relu", x)
            case "silu":
                return self.g.op("Mul", x, self.g.op("Sigmoid", x))
            case other:
                raise ValueError(f"the activation {other!r} has no ONNX form")

    def take(self, x: str, at: str) -> str:
        """Gather the rows [B, P, …] of x [B, S, …] at the positions [B, P]."""
        return self.g.op("GatherND", x, self.g.op("Unsqueeze", at, self.g.ints(-1)), batch_dims=1)

    def positions(self) -> str:
        """Add the positions 0, 1, …, S-1 of a row."""
        if self._positions is None:
            g = self.g
            self._positions = g.op("Range", g.int(0), g.op("Squeeze", self.length), g.int(1))
        return self._positions

    def counted_positions(self) -> str:
        """Add RoBERTa's positions [B, S]: ids that are not padding count from 1, wherever they stand; padding has 0."""
        g = self.g
        padding = g.op("Cast", g.op("Equal", self.ids, g.int(self.c.position_offset - 1)), to=g.type(np.int64))
        real = g.op("Sub", g.int(1), padding)
        return g.op("Mul", g.op("CumSum", real, g.int(1)), real)

    def unmasked_scale(self) -> str:
        """Add what token dropout multiplies the embeddings by, [B, S, 1]; padding does not count."""
        g = self.g
        masked = g.op("Cast", g.op("Equal", self.ids, g.int(self.c.mask_id)), to=g.type(np.float32))
        kept = g.op("Sub", g.scalar(1.0), masked)
        real = None if self.mask is None else g.op("Cast", self.mask, to=g.type(np.float32))
        counted = kept if real is None else g.op("Mul", kept, real)
        if real is None:
            length = g.op("Cast", self.length, to=g.type(np.float32))
        else:
            length = g.op("ReduceSum", real, g.ints(-1), keepdims=1)
        unmasked = g.op("Max", g.op("ReduceSum", counted, g.ints(-1), keepdims=1), g.scalar(1.0))
        scale = g.op("Mul", kept, g.op("Div", g.op("Mul", length, g.scalar(KEPT)), unmasked))
        return g.op("Unsqueeze", scale, g.ints(-1))

    def rope(self, theta: float, at: str | None) -> tuple[str, str]:
        """Add cosine and sine of the rotary angles, [B, S, K / 2], or [B, P, K / 2] at some positions."""
        if (key := (theta, at)) not in self._ropes:
            g, K = self.g, self.c.head_width
            exponent = np.arange(0, K, 2, dtype=np.float32) / np.float32(K)
            frequency = (np.float32(1.0) / np.float32(theta) ** exponent).astype(np.float32)
            if at is None:  # equal in every row: zeros [B, S] plus positions [S]
                at = g.op("Add", g.op("Sub", self.ids, self.ids), self.positions())
            positions = g.op("Unsqueeze", g.op("Cast", at, to=g.type(np.float32)), g.ints(-1))
            angle = g.op("Mul", positions, g.weight(f"rope.{theta:g}", frequency))
            self._ropes[key] = (g.op("Cos", angle), g.op("Sin", angle))
        return self._ropes[key]

    def rotate(self, x: str, theta: float, at: str | None) -> str:
        """Rotate [B, H, N, K] with operators of any opset: x·cos + swap(x)·sin, with the sine signed."""
        g, half = self.g, self.c.head_width // 2
        if (key := (theta, at)) not in self._full_ropes:
            cosine, sine = (g.op("Unsqueeze", table, g.ints(1)) for table in self.rope(theta, at))
            sine = g.op("Concat", g.op("Mul", sine, g.scalar(-1.0)), sine, axis=-1)
            self._full_ropes[key] = (g.op("Concat", cosine, cosine, axis=-1), sine)
        cosine, sine = self._full_ropes[key]
        first, second = g.split(x, (half, half), axis=-1)
        swapped = g.op("Concat", second, first, axis=-1)
        return g.op("Add", g.op("Mul", x, cosine), g.op("Mul", swapped, sine))

    def score_bias(self, window: int | None, at: str | None) -> str | None:
        """Return what masks the scores if some pairs may not attend; broadcasts to [B, H, S, S] or [B, H, P, S]."""
        if (window, at) not in self._biases:
            g, barred = self.g, self.padding
            if window is not None:
                query = self.positions() if at is None else at
                query = g.op("Unsqueeze", query, g.ints(-1) if at is None else g.ints(1, -1))
                far = g.op("Greater", g.op("Abs", g.op("Sub", query, self.positions())), g.int(window))
                barred = far if barred is None else g.op("Or", far, barred)
            self._biases[window, at] = (
                None if barred is None else g.op("Where", barred, g.scalar(NEGATIVE), g.scalar(0.0))
            )
        return self._biases[window, at]

    # ---- layers ----------------------------------------------------------------------------------

    def embed(self) -> str:
        g, c = self.g, self.c
        table = self.array("token_table")
        assert table is not None
        x = self.precision.lookup(g, self.ids, "token_table", table)
        if c.token_dropout:
            x = g.op("Mul", x, self.unmasked_scale())
        types = self.array("type_table")
        if self.types is not None and types is not None:
            x, types = g.op("Add", x, g.op("Gather", g.weight("type_table", types), self.types, axis=0)), None
        if c.positions == "learned":
            rows = self.array("position_table")
            assert rows is not None
            counted = self.mask is not None and c.position_offset > 0
            rows = rows[c.position_offset - counted :] + (0 if types is None else types[0])
            rows = g.weight("position_table", rows)
            if counted:
                here = g.op("Gather", rows, self.counted_positions(), axis=0)
            else:
                here = g.op("Slice", rows, g.ints(0), self.length, g.ints(0))
            x = g.op("Add", x, here)
        elif types is not None:
            x = g.op("Add", x, g.weight("type_table", types[0]))
        x = self.norm(x, "embedding_norm") if c.embedding_norm else x
        return self.dense(x, "widen") if c.embedding_width else x

    def queries_keys_values(self, x: str, index: int, at: str | None, last: bool) -> tuple[str, str, str]:
        """Add the queries, keys and values of one layer, [B, S, D] each; with `at`, queries only there [B, P, D].

        In the last layer, queries have a separate matrix, unless other layers share its weights.
        """
        g, c = self.g, self.c
        shared, D = self.shared(index), c.width
        name = f"layer_{shared}"
        x = self.norm(x, name, "attention_norm") if c.norm_first and c.norms_attention(shared) else x
        path = (name, "attention", "qkv")
        if last and (not c.layer_groups or c.layer_groups == c.layers):
            q = self.dense(x if at is None else self.take(x, at), *path, columns=slice(0, D), part=".query")
            k, v = g.split(self.dense(x, *path, columns=slice(D, None), part=".key_value"), (D, D), axis=-1)
            return q, k, v
        q, k, v = g.split(self.dense(x, *path), (D, D, D), axis=-1)
        return q if at is None else self.take(q, at), k, v

    def theta(self, window: int | None) -> float | None:
        """Return RoPE's base in a layer with this window; None without RoPE."""
        c = self.c
        return None if c.positions != "rope" else c.rope_theta if window is None else c.rope_theta_local

    def attention_weights(self, q: str, k: str, window: int | None, at: str | None) -> str:
        """Add the attention weights [B, H, S, S], or [B, H, P, S] for queries at some positions."""
        g = self.g
        q, k = self.heads(q), self.heads(k)
        if (theta := self.theta(window)) is not None:
            q, k = self.rotate(q, theta, at), self.rotate(k, theta, None)
        q = g.op("Mul", q, g.scalar(self.c.head_width**-0.5))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        if (bias := self.score_bias(window, at)) is not None:
            scores = g.op("Add", scores, bias)
        return g.op("Softmax", scores, axis=-1)

    def heads(self, y: str) -> str:
        """Split the heads: [B, N, D] → [B, H, N, K]."""
        g, c = self.g, self.c
        return g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, c.heads, c.head_width)), perm=[0, 2, 1, 3])

    def attention(self, q: str, k: str, v: str, window: int | None, at: str | None) -> str:
        """Mix the values by attention, [B, S, D] or [B, P, D]."""
        g, c = self.g, self.c
        if self.fused:
            if (theta := self.theta(window)) is not None:
                q = g.op("RotaryEmbedding", q, *self.rope(theta, at), num_heads=c.heads)
                k = g.op("RotaryEmbedding", k, *self.rope(theta, None), num_heads=c.heads)
            bias = self.score_bias(window, at)
            given = (q, k, v) if bias is None else (q, k, v, bias)
            return g.op("Attention", *given, q_num_heads=c.heads, kv_num_heads=c.heads)
        weights = self.attention_weights(q, k, window, at)
        self.attended.append(weights)
        mixed = g.op("Transpose", g.op("MatMul", weights, self.heads(v)), perm=[0, 2, 1, 3])
        return g.op("Reshape", mixed, g.ints(0, 0, c.width))

    def feed_forward(self, x: str, layer: str) -> str:
        h = self.dense(x, layer, "mlp", "up")
        if self.c.gated:
            inner, gate = self.g.split(h, (self.c.ff_width, self.c.ff_width), axis=-1)
            h = self.g.op("Mul", self.activate(inner, self.c.activation), gate)
        else:
            h = self.activate(h, self.c.activation)
        return self.dense(h, layer, "mlp", "down")

    def shared(self, index: int) -> int:
        """Return the index of the parameter set that a layer uses (ALBERT shares them)."""
        return index * self.c.layer_groups // self.c.layers if self.c.layer_groups else index

    def layer(self, x: str, index: int, at: str | None, last: bool = False) -> str:
        """Add one encoder layer; with `at`, only its rows [B, P, D] at those positions."""
        g, c = self.g, self.c
        name = f"layer_{self.shared(index)}"
        mixed = self.attention(*self.queries_keys_values(x, index, at, last), c.window(index), at)
        x = g.op("Add", x if at is None else self.take(x, at), self.dense(mixed, name, "attention", "out"))
        if c.norm_first:
            return g.op("Add", x, self.feed_forward(self.norm(x, name, "mlp_norm"), name))
        x = self.norm(x, name, "attention_norm")
        return self.norm(g.op("Add", x, self.feed_forward(x, name)), name, "mlp_norm")

    def hidden(self, at: str | None = None, split_last_query: bool = False) -> str:
        """Add the encoder up to the last layer's hidden states, everywhere [B, S, D] or at some positions [B, P, D].

        `split_last_query`: store the last layer's query projection separately, so that it runs only at the requested
        positions.
        """
        x = self.embed()
        for index in range(self.c.layers - 1):
            x = self.layer(x, index, None)
        return self.layer(x, self.c.layers - 1, at, last=split_last_query)

    def vocabulary(self, x: str, shape_like: str) -> str:
        """Add the head and the vocabulary projection: x [B, N, D] → logits [B, N, V]; `shape_like` is any [B, N]."""
        g, c = self.g, self.c
        x = g.op("Reshape", x, g.ints(-1, c.width))
        x = self.norm(x, "final_norm") if c.norm_first else x
        x = self.norm(self.activate(self.dense(x, "head"), c.head_activation or c.activation), "head_norm")
        name = "token_table" if c.tied else "decoder"
        table, bias = self.array(name), self.array("decoder_bias")
        assert table is not None
        logits = self.precision.project(g, x, name, table)
        if bias is not None:
            logits = g.op("Add", logits, g.weight("decoder_bias", bias))
        return g.op("Reshape", logits, g.op("Concat", g.op("Shape", shape_like), g.ints(c.vocab_size), axis=0))
