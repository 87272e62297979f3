"""An ONNX graph under construction, and its two files: the nodes, and the weights as external data."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 20, 10
"""Gelu needs opset 20, which onnxruntime has supported since 1.17."""
FUSED_OPSET = 23
"""Attention and RotaryEmbedding need opset 23, supported since onnxruntime 1.23; 1.30 and later check their inputs."""
CONTRIB = "com.microsoft"
DATA_SUFFIX = ".data"
INLINE_BELOW = 1024
"""Tensors of fewer bytes stay in the graph, where shape inference and constant folding need them."""
ALIGN = 64
LARGEST_SINGLE = (1 << 31) - (1 << 22)
"""Most bytes of weights in a file without external data: protobuf's limit minus room for the nodes."""
Attribute = int | float | str | Sequence[int]
"""The value of a node's attribute."""


class Graph:
    """Nodes and weights of one graph; each method returns the name of its result."""

    def __init__(self, name: str, opset: int = OPSET) -> None:
        self.name, self.opset = name, opset
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._counts: dict[str, int] = {}

    def _fresh(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}_{self._counts[kind]}"

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """Add a node with one output."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Attribute) -> tuple[str, ...]:
        """Add a node with several outputs."""
        name = self._fresh(kind)
        results = tuple(f"{name}.{i}" if outputs > 1 else name for i in range(outputs))
        node = helper.make_node(kind, inputs, results, name=name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self._nodes.append(node)
        return results

    def split(self, x: str, sizes: Sequence[int], axis: int) -> tuple[str, ...]:
        return self.ops("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)

    def weight(self, name: str, array: np.ndarray) -> str:
        """Store a tensor; storing the same name again reuses it."""
        known = self._weights.setdefault(name, array)
        assert known is array or (known.shape == array.shape and known.dtype == array.dtype), name
        return name

    def ints(self, *values: int) -> str:
        """Store a small int64 vector."""
        return self.weight("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def int(self, value: int) -> str:
        return self.weight(f"int.{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        return self.weight(f"scalar.{value!r}", np.array(value, np.float32))

    @staticmethod
    def type(dtype: DTypeLike) -> int:
        """Return ONNX's number for a numpy type."""
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, self.type(dtype), shape))
        return name

    def output(self, name: str, value: str, dtype: DTypeLike, shape: Sequence[str | int]) -> str:
        """Make a result an output of the graph, under a public name."""
        for node in self._nodes:
            for i, result in enumerate(node.output):
                if result == value:
                    node.output[i] = name
        self._outputs.append(helper.make_tensor_value_info(name, self.type(dtype), shape))
        return name

    def write(self, path: Path) -> list[Path]:
        """Write the graph to `path` and the weights to `path` + .data; return both paths."""
        data = path.with_name(path.name + DATA_SUFFIX)
        tensors = []
        with data.open("wb") as file:
            for name, array in self._weights.items():
                if array.nbytes < INLINE_BELOW:
                    tensors.append(numpy_helper.from_array(array, name))
                    continue
                file.write(bytes(-file.tell() % ALIGN))
                tensor = TensorProto(name=name, dims=array.shape, data_type=self.type(array.dtype))
                tensor.data_location = TensorProto.EXTERNAL
                entries = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
                for key, value in entries.items():
                    tensor.external_data.add(key=key, value=str(value))
                file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).data)
                tensors.append(tensor)
        path.write_bytes(self._model(tensors).SerializeToString())
        onnx.checker.check_model(str(path))
        return [path, data]

    def write_sharing(self, path: Path, other: Path) -> None:
        """Write only the nodes; every weight must already be stored by `other`, a graph in the same folder.

        Raises:
            ValueError: a weight is not stored there, or has different values.
        """
        stored = {tensor.name: tensor for tensor in onnx.load(other, load_external_data=False).graph.initializer}
        tensors = []
        for name, array in self._weights.items():
            if array.nbytes < INLINE_BELOW:
                tensors.append(numpy_helper.from_array(array, name))
                continue
            asked = deepcopy(stored.get(name))  # onnx before 1.23 writes the values into the tensor that it reads
            if asked is None or not np.array_equal(numpy_helper.to_array(asked, str(other.parent)), array):
                raise ValueError(f"{other} does not store {name}, which {path.name} needs")
            tensors.append(stored[name])
        path.write_bytes(self._model(tensors).SerializeToString())
        onnx.checker.check_model(str(path))

    def model(self) -> onnx.ModelProto:
        """Return graph and weights as one model in memory.

        Raises:
            ValueError: the weights are larger than a protobuf message may be.
        """
        size = sum(array.nbytes for array in self._weights.values())
        if size > LARGEST_SINGLE:
            raise ValueError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file (2.1 GB)")
        model = self._model([numpy_helper.from_array(array, name) for name, array in self._weights.items()])
        onnx.checker.check_model(model)
        return model

    def write_single(self, path: Path) -> None:
        """Write graph and weights as one file.

        Raises:
            ValueError: the weights are larger than a protobuf message may be.
        """
        path.write_bytes(self.model().SerializeToString())

    def _model(self, tensors: Sequence[TensorProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        ir = max(IR, helper.find_min_ir_version_for(opsets[:1]))
        if any(node.domain == CONTRIB for node in self._nodes):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="mlm-onnx")
