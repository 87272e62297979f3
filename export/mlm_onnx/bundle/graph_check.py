"""Check an ONNX file before onnxruntime reads it: only known operators, no data from outside the bundle. Stdlib only.

The check walks the messages to a fixed depth. Whatever may nest without bound in ONNX (graphs in attributes, functions,
sequence types) is refused where it begins, as is every field that a bundle does not need.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlm_onnx.bundle.wire import BYTES_FIELD, OnnxError, Wire

COMPUTE = """
Abs Add Attention Cast Concat Cos CumSum Div DynamicQuantizeLinear Equal Gather GatherND Gelu Gemm Greater
LayerNormalization MatMul MatMulInteger Max Mul Or Pow RMSNormalization Range ReduceMax ReduceMean ReduceSum Relu
Reshape RotaryEmbedding Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
CONTRIB = "DynamicQuantizeMatMul GatherBlockQuantized MatMulNBits"
OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset(COMPUTE.split()),
    "ai.onnx": frozenset(COMPUTE.split()),
    "com.microsoft": frozenset(CONTRIB.split()),
}
"""Domain → the operators that `convert` writes. They only compute on tensors; none touches files or runs other code."""
HEADS: Mapping[str, tuple[frozenset[str], range]] = {
    "Attention": (frozenset({"q_num_heads", "kv_num_heads"}), range(3, 5)),
    "RotaryEmbedding": (frozenset({"num_heads"}), range(3, 4)),
}
"""Operator → its exact set of attributes, all of which hold the number of heads, and how many inputs it may have.

onnxruntime divides by these numbers; and position ids, a fourth input of RotaryEmbedding, would direct its reads.
"""
MOST_HEADS = 1 << 12

BYTES = {1: 4, 2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
"""TensorProto data type → bytes per element."""
INT64 = 7
INT_ATTRIBUTE = 2
MODEL_BYTES = (2 << 30) - 1  # protobuf's own limit
PARTS = 200_000  # nodes, tensors, ports
RANK = 16
ELEMENTS = 1 << 31
LARGEST_DIMENSION = 1 << 24
"""Also the largest constant, since a constant may become a dimension; no limit of a bundle exceeds 2²⁴."""
LARGEST_INT64 = (1 << 63) - 1

# Fields that each kind of message may have; those that need no check are skipped.
MODEL = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14})
GRAPH = frozenset({1, 2, 5, 10, 11, 12, 13, 16})
NODE = frozenset({1, 2, 3, 4, 5, 6, 7, 9})
ATTRIBUTE = frozenset({1, 2, 3, 4, 5, 7, 8, 9, 13, 20})
TENSOR = frozenset({1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 16})


@dataclass
class _Tensor:
    name: str = ""
    type: int = 0
    dims: tuple[int, ...] = ()


@dataclass
class _Node:
    kind: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    attributes: dict[str, int | None] = field(default_factory=dict)
    """Name → value; None if it is not an integer."""


def check_onnx(file: Path, sizes: Mapping[str, int]) -> set[str]:
    """Refuse a model that could reach outside the bundle, or whose tensors do not have the sizes they claim.

    Args:
        sizes: name → size in bytes of each file in the model's folder that may store tensors.

    Returns:
        The names of the files that do store tensors.

    Raises:
        OnnxError: the model is refused; the message gives the reason, and the caller adds the file's name.
    """
    size = file.stat().st_size
    if not 0 < size <= MODEL_BYTES:
        raise OnnxError(f"{size} bytes is not the size of an ONNX model")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walker = _Walker(data, sizes)
        walker.model(0, size)
    return walker.used


class _Walker(Wire):
    """A checking walk over the messages; each method reads one kind between two byte positions."""

    def __init__(self, data: mmap.mmap, sizes: Mapping[str, int]) -> None:
        super().__init__(data)
        self.sizes = sizes
        self.used: set[str] = set()

    def model(self, at: int, end: int) -> None:
        graphs = []
        for part in self.fields(at, end, MODEL, "model"):
            match part[0]:
                case 7:
                    graphs.append(self.inside(part))
                case 8:
                    self.opset(*self.inside(part))
        if len(graphs) != 1:
            raise OnnxError(f"it has {len(graphs)} graphs instead of one")
        self.graph(*graphs[0])

    def opset(self, at: int, end: int) -> None:
        for part in self.fields(at, end, frozenset({1, 2}), "opset"):
            if part[0] == 1:
                self.text(part)
            elif not 1 <= self.number(part) <= 1000:
                raise OnnxError("it requires an impossible opset")

    def graph(self, at: int, end: int) -> None:
        nodes: list[_Node] = []
        tensors: dict[str, _Tensor] = {}
        for part in self.fields(at, end, GRAPH, "graph"):
            match part[0]:
                case 1:
                    nodes.append(self.node(*self.inside(part)))
                case 5:
                    tensor = self.tensor(*self.inside(part))
                    if tensor.name in tensors:
                        raise OnnxError(f"it stores {tensor.name!r} twice")
                    tensors[tensor.name] = tensor
                case 11 | 12 | 13:
                    self.port(*self.inside(part))
            if len(nodes) + len(tensors) > PARTS:
                raise OnnxError("it has too many nodes or tensors")
        for node in nodes:
            if node.kind == "MatMulNBits":
                _check_blocks(node, tensors)
            elif node.kind in HEADS:
                _check_heads(node)

    def node(self, at: int, end: int) -> _Node:
        node = _Node()
        for part in self.fields(at, end, NODE, "node"):
            match part[0]:
                case 1:
                    node.inputs.append(self.text(part))
                case 4:
                    node.kind = self.text(part)
                case 5:
                    self.attribute(*self.inside(part), node)
                case 7:
                    node.domain = self.text(part)
                case _:
                    self.inside(part)
        if node.kind not in OPERATORS.get(node.domain, ()):
            raise OnnxError(f"it contains the operator {node.domain or 'ai.onnx'}.{node.kind}, which no bundle needs")
        return node

    def attribute(self, at: int, end: int, node: _Node) -> None:
        name, kind, value, tensors = "", 0, None, 0
        for part in self.fields(at, end, ATTRIBUTE, "attribute"):
            match part[0]:
                case 1:
                    name = self.text(part)
                case 3:
                    value = self.number(part)
                    self.check_ints([value])
                case 5:
                    self.tensor(*self.inside(part))
                    tensors += 1
                case 8:
                    self.check_ints(self.numbers(part))
                case 20:
                    kind = self.number(part)
        if name in node.attributes or tensors > 1:
            raise OnnxError(f"an operator {node.kind} in it has two attributes named {name}")
        node.attributes[name] = value if kind == INT_ATTRIBUTE else None

    def tensor(self, at: int, end: int) -> _Tensor:
        tensor, dims, entries, held, external = _Tensor(), [], {}, 0, False
        raw: tuple[int, int] | None = None
        for part in self.fields(at, end, TENSOR, "tensor"):
            match part[0]:
                case 1:
                    dims += self.numbers(part)
                case 2:
                    tensor.type = self.number(part)
                case 4 | 5 | 7 | 10 | 11:
                    held += part[3] - part[2] if part[1] == BYTES_FIELD else 1
                    if part[0] == 7:
                        self.check_ints(self.numbers(part))
                case 8:
                    tensor.name = self.text(part)
                case 9:
                    if raw is not None:
                        raise OnnxError(f"tensor {tensor.name!r} is stored twice")
                    raw = self.inside(part)
                case 13:
                    key, value = self.entry(*self.inside(part))
                    if key in entries:
                        raise OnnxError(f"tensor {tensor.name!r} has two values for {key!r}")
                    entries[key] = value
                case 14:
                    if self.number(part) not in (0, 1):
                        raise OnnxError(f"tensor {tensor.name!r} is stored in an unknown way")
                    external = self.number(part) == 1
        tensor.dims = tuple(dims)
        if len(dims) > RANK or any(not 0 <= d < ELEMENTS for d in dims) or math.prod(dims) > ELEMENTS:
            raise OnnxError(f"tensor {tensor.name!r} has impossible dimensions")
        if tensor.type not in BYTES:
            raise OnnxError(f"tensor {tensor.name!r} has data type {tensor.type}, which no bundle needs")
        size = math.prod(dims) * BYTES[tensor.type]
        if external:
            if raw is not None or held:
                raise OnnxError(f"tensor {tensor.name!r} is stored twice")
            self.check_location(tensor.name, entries, size)
        elif entries:
            raise OnnxError(f"tensor {tensor.name!r} is stored twice")
        elif raw is not None:
            if held or raw[1] - raw[0] != size:
                raise OnnxError(f"tensor {tensor.name!r} has {raw[1] - raw[0]} bytes where its dimensions need {size}")
            if tensor.type == INT64:
                values = memoryview(self.data[raw[0] : raw[1]])
                self.check_ints([int.from_bytes(values[i : i + 8], "little", signed=True) for i in range(0, size, 8)])
        elif held < math.prod(dims):  # onnxruntime counts them too; this keeps it from allocating memory for more
            raise OnnxError(f"tensor {tensor.name!r} has fewer values than its dimensions need")
        return tensor

    def check_ints(self, values: Sequence[int]) -> None:
        """Refuse constants too large for a dimension, except the largest int64, by which a slice means "to the end"."""
        if any(abs(value) > LARGEST_DIMENSION and abs(value) < LARGEST_INT64 - 1 for value in values):
            raise OnnxError("it contains a number that is too large for a dimension")

    def check_location(self, name: str, entries: Mapping[str, str], size: int) -> None:
        """Check that external data lies within a listed file of the bundle and has the size that the tensor needs."""
        if unknown := sorted(set(entries) - {"location", "offset", "length"}):
            raise OnnxError(f"tensor {name!r} has an unknown external data key {unknown[0]!r}")
        location = entries.get("location", "")
        if location not in self.sizes:
            raise OnnxError(f"tensor {name!r} lies outside the bundle: {location[:80]!r}")
        numbers = [entries.get("offset", "0"), entries.get("length", str(size))]
        if not all(number.isascii() and number.isdigit() and len(number) <= 19 for number in numbers):
            raise OnnxError(f"tensor {name!r} has an offset or length that is not a plain number")
        offset, length = map(int, numbers)
        if length != size or offset + length > self.sizes[location]:
            raise OnnxError(
                f"tensor {name!r} needs {size} bytes but claims bytes {offset} to {offset + length} "
                f"of {location}, which has {self.sizes[location]}"
            )
        self.used.add(location)

    def entry(self, at: int, end: int) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for part in self.fields(at, end, frozenset(texts), "external data"):
            texts[part[0]] = self.text(part)
        return texts[1], texts[2]

    def port(self, at: int, end: int) -> None:
        """Check an input, an output or the type of a value: a tensor whose dimensions are names or possible sizes."""
        for part in self.fields(at, end, frozenset({1, 2, 3, 4}), "port"):
            if part[0] != 2:
                continue
            for kind in self.fields(*self.inside(part), frozenset({1, 6}), "type"):
                if kind[0] == 1:
                    self.tensor_type(*self.inside(kind))

    def tensor_type(self, at: int, end: int) -> None:
        for part in self.fields(at, end, frozenset({1, 2}), "tensor type"):
            if part[0] == 1:
                continue
            for dim in self.fields(*self.inside(part), frozenset({1}), "shape"):
                for value in self.fields(*self.inside(dim), frozenset({1, 2, 3}), "dimension"):
                    if value[0] == 1 and not 0 <= self.number(value) <= LARGEST_DIMENSION:
                        raise OnnxError("it declares an impossible dimension")


def _check_heads(node: _Node) -> None:
    names, inputs = HEADS[node.kind]
    heads = {node.attributes.get(name) or 0 for name in names}
    if set(node.attributes) != names or len(heads) != 1 or not 0 < min(heads) <= MOST_HEADS:
        raise OnnxError(f"an operator {node.kind} in it has impossible attributes")
    if len(node.inputs) not in inputs or not all(node.inputs):
        raise OnnxError(f"an operator {node.kind} in it has {len(node.inputs)} inputs")


def _check_blocks(node: _Node, tensors: Mapping[str, _Tensor]) -> None:
    """Check that attributes agree with tensor sizes: onnxruntime repacks a MatMulNBits by its attributes alone."""
    n, k, block = (node.attributes.get(name) or 0 for name in ("N", "K", "block_size"))
    bits = node.attributes.get("bits", 4)
    if not (bits in (2, 4, 8) and block in (16, 32, 64, 128, 256) and 0 < n < ELEMENTS and 0 < k < ELEMENTS):
        raise OnnxError("a MatMulNBits in it has impossible attributes")
    blocks = -(-k // block)
    needs = {1: n * blocks * block * bits // 8, 2: n * blocks, 3: n * (-(-blocks * bits // 8)), 5: n}
    for index, name in enumerate(node.inputs[1:], 1):
        if not name:
            continue
        stored = tensors.get(name)
        if index not in needs or stored is None or math.prod(stored.dims) != needs[index]:
            raise OnnxError(f"a MatMulNBits in it does not fit {name!r}")
