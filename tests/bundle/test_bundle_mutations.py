"""Damaged and hostile bundles, hundreds of them, the same each time: refused, or answered from, but never worse.

`python tests/bundle/test_bundle_mutations.py BUNDLE FOLDER` opens them one after another with hashes made again, as an
attacker would; it runs apart from the tests, so that a crash, a hang or a flood of memory is seen as a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from mlm_onnx import FillMask
from mlm_onnx.bundle.layout import EMBED_GRAPH, FAST_DATA, FAST_GRAPH, FILL, TASKS, TOKENIZER, BundleError
from mlm_onnx.bundle.read import open_bundle

Files = dict[str, bytes]
SECONDS = 20
"""One mutation may take before it counts as hanging."""
MEGABYTES = 1500
"""The process may grow to, over all of them."""
TEXT = "This [MASK] creates a super [MASK]"
LISTED = (*TASKS[FILL].required, EMBED_GRAPH)
OPENED = {TOKENIZER, FAST_GRAPH, FAST_DATA}
"""Files that FillMask reads before it answers; the embedding graph is read only when used."""


@dataclass(frozen=True)
class Mutation:
    name: str
    files: Files
    """Those that are different."""
    refused: bool = False
    """It must be refused before onnxruntime opens it, whatever its hashes say."""
    manifest: Callable[[dict[str, Any]], object] = lambda manifest: None


@cache
def read(bundle: Path) -> Files:
    return {name: (bundle / name).read_bytes() for name in LISTED}


def mutations(files: Files, flips: int) -> Iterator[Mutation]:
    """Yield changes to a bundle, one at a time; `flips` of the graph are of one bit, and fewer of the other files."""
    rng = random.Random(0)
    for name in LISTED:
        whole = files[name]
        for keep in (0, 1, len(whole) // 3, len(whole) - 1):
            yield Mutation(f"{name} cut to {keep}", {name: whole[:keep]})
        for other in LISTED:
            if other > name:
                yield Mutation(f"{name} and {other} swapped", {name: files[other], other: whole})
    for name, count in (
        (FAST_GRAPH, flips),
        (EMBED_GRAPH, flips // 3),
        (TOKENIZER, flips // 2),
        (FAST_DATA, flips // 12),
    ):
        for _ in range(count):
            damaged, place, bit = bytearray(files[name]), rng.randrange(len(files[name])), rng.randrange(8)
            damaged[place] ^= 1 << bit
            yield Mutation(f"{name} bit {place}.{bit}", {name: bytes(damaged)})
    for byte in (0x00, 0x7F, 0xFF):
        yield Mutation(f"weights all {byte:#x}", {FAST_DATA: bytes([byte]) * len(files[FAST_DATA])})
    yield from hostile_graphs(files)
    yield from hostile_tokenizers(files)


def hostile_graphs(files: Files) -> Iterator[Mutation]:
    """Yield hostile changes to a graph, one at a time."""

    def change(
        name: str, edit: Callable[[onnx.ModelProto], object], refused: bool = True, file: str = FAST_GRAPH
    ) -> Mutation:
        model = onnx.ModelProto.FromString(files[file])
        edit(model)
        return Mutation(name, {file: model.SerializeToString()}, refused)

    def first(model: onnx.ModelProto, key: str, value: str) -> None:
        stored = next(each for each in model.graph.initializer if each.external_data)
        next(entry for entry in stored.external_data if entry.key == key).value = value

    for path in (
        "../outside.bin", "../../outside.bin", "/etc/passwd", "./fill_mask.onnx.data", "sub/../fill_mask.onnx.data",
        "..\\outside.bin", "C:\\outside.bin", "file:///etc/passwd", "", ".", "/", "/dev/zero", "/proc/self/mem",
        "*/_ORT_MEM_ADDR_/*", "fill_mask.onnx.data\0", "FILL_MASK.ONNX.DATA", "link.data", "../config.json",
    ):  # fmt: skip
        yield change(f"external data at {path!r}", lambda m, path=path: first(m, "location", path))
    for path in ("../outside.bin", "/etc/passwd", "link.data"):
        yield change(f"embeddings at {path!r}", lambda m, path=path: first(m, "location", path), file=EMBED_GRAPH)
    yield change("embeddings by a loop", lambda m: m.graph.node.add(op_type="Loop"), file=EMBED_GRAPH)
    for key in ("offset", "length"):
        for value in (
            "-1",
            "1e3",
            "0x40",
            "",
            " 1",
            "٣",
            "9" * 19,
            "9" * 400,
            str(1 << 62),
            str(len(files[FAST_DATA])),
        ):
            yield change(f"external {key} {value[:20]!r}", lambda m, k=key, v=value: first(m, k, v))
    for dims in ([1 << 40], [1 << 20] * 4, [-1, 4], [1 << 63 - 1], [2] * 40, [0], []):
        for kind in ("external", "inline"):

            def resize(model: onnx.ModelProto, dims: list[int] = dims, kind: str = kind) -> None:
                stored = next(t for t in model.graph.initializer if bool(t.external_data) == (kind == "external"))
                del stored.dims[:]
                stored.dims.extend(dims)

            yield change(f"{kind} tensor of {dims}"[:60], resize, refused=dims != [])

    def numbers(model: onnx.ModelProto, value: int) -> None:
        for stored in model.graph.initializer:
            if stored.name.startswith("int"):
                count = len(stored.raw_data) // 8
                stored.raw_data = value.to_bytes(8, "little", signed=True) * count

    for value in (-(1 << 62), -3, 0, 1, 5, 1 << 24, 1 << 25, 1 << 40, (1 << 63) - 1):
        yield change(f"integers {value}", lambda m, v=value: numbers(m, v), abs(value) in (1 << 25, 1 << 40, 1 << 62))
    for domain, kind in (("", "Loop"), ("", "If"), ("", "ConstantOfShape"), ("evil", "Add"), ("ai.onnx.ml", "Scaler"),
                         ("com.microsoft", "BeamSearch"), ("", "Add\0"), ("", "A" * 5000)):  # fmt: skip
        yield change(
            f"operator {domain}.{kind}"[:40], lambda m, d=domain, k=kind: m.graph.node.add(op_type=k, domain=d)
        )

    def nest(model: onnx.ModelProto) -> None:
        inner = onnx.GraphProto(name="g")
        for _ in range(30):
            node = onnx.NodeProto(op_type="Identity")
            node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
            inner = onnx.GraphProto(name="g")
            inner.node.append(node)
        model.graph.node.append(inner.node[0])

    yield change("graphs in graphs", nest)
    yield change("a function", lambda m: m.functions.add(name="f", domain="d"))
    yield change("training", lambda m: m.training_info.add())
    yield change("a sparse tensor", lambda m: m.graph.sparse_initializer.add(dims=[1 << 40]))
    yield change("text tensor", lambda m: m.graph.initializer.add(name="t", data_type=8, dims=[1], string_data=[b"x"]))
    yield change("one tensor twice", lambda m: m.graph.initializer.append(m.graph.initializer[0]))
    yield change(
        "an unknown external data key", lambda m: m.graph.initializer[0].external_data.add(key="prepacked_0", value="1")
    )
    yield change(
        "a huge output", lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 1 << 40)
    )
    yield change("no output", lambda m: m.graph.ClearField("output"), False)
    yield change("no nodes", lambda m: m.graph.ClearField("node"), False)
    yield change("no tensors", lambda m: m.graph.ClearField("initializer"), False)
    yield change("opset 0", lambda m: setattr(m.opset_import[0], "version", 0))
    yield change("opset 900", lambda m: setattr(m.opset_import[0], "version", 900), False)
    yield change("nodes backwards", lambda m: m.graph.node.reverse(), False)
    yield change("a circle", lambda m: m.graph.node[0].input.append(m.graph.node[-1].output[0]), False)
    yield change("cast to text", lambda m: _attribute(m, "Cast", "to", 8), False)
    for axis in (-9, 9, 1 << 20):
        yield change(f"softmax over {axis}", lambda m, a=axis: _attribute(m, "Softmax", "axis", a), False)
    names = ("N", "K", "bits", "block_size", "accuracy_level", "gather_axis", "quantize_axis")
    for name in (*names, "q_num_heads", "kv_num_heads", "num_heads"):
        for value in (-1, 0, 1, 2, 3, 8, 16, 64, 1 << 20, 1 << 32, 1 << 40, (1 << 32) + 4, (1 << 63) - 1):
            model = onnx.ModelProto.FromString(files[FAST_GRAPH])
            if _attribute(model, None, name, value):
                yield Mutation(f"{name} = {value}", {FAST_GRAPH: model.SerializeToString()})
    for name in ("q_num_heads", "kv_num_heads"):
        yield change(f"no {name}", lambda m, n=name: [_forget(node, n) for node in m.graph.node])
    for kind, name in (("Attention", "is_causal"), ("Attention", "softcap"), ("RotaryEmbedding", "interleaved")):
        yield change(f"{kind} with {name}", lambda m, k=kind, n=name: _turned(m, k).attribute.add(name=n, type=2, i=1))
    yield change("position ids", lambda m: _turned(m, "RotaryEmbedding").input.append("input_ids"))
    yield change("past keys", lambda m: _turned(m, "Attention").input.extend(["", "input_ids"]))
    yield change("queries alone", lambda m: _turned(m, "Attention").input.pop())
    whole = files[FAST_GRAPH]
    yield Mutation("two graphs", {FAST_GRAPH: whole + whole}, refused=True)
    yield Mutation("a field without end", {FAST_GRAPH: whole + b"\x3a\xff\xff\xff\xff\x0f"}, refused=True)
    yield Mutation("a number without end", {FAST_GRAPH: whole + b"\x08" + b"\xff" * 40}, refused=True)
    yield Mutation("a group", {FAST_GRAPH: whole + b"\x0b" * 1000}, refused=True)


def _attribute(model: onnx.ModelProto, kind: str | None, name: str, value: int) -> bool:
    found = [a for n in model.graph.node if kind in (None, n.op_type) for a in n.attribute if a.name == name]
    for attribute in found:
        attribute.i = value
    return bool(found)


def _forget(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _turned(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    """A node of that kind: the first one of attention, made into it."""
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    if node.op_type != kind:
        node.op_type = kind
        del node.attribute[:]
        node.attribute.add(name="num_heads", type=onnx.AttributeProto.INT, i=4)
    return node


def hostile_tokenizers(files: Files) -> Iterator[Mutation]:
    """Yield hostile changes to a tokenizer and a manifest."""

    def change(name: str, edit: Callable[[dict[str, Any]], object]) -> Mutation:
        tokenizer = json.loads(files[TOKENIZER])
        edit(tokenizer)
        return Mutation(name, {TOKENIZER: json.dumps(tokenizer).encode()})

    def manifest(name: str, edit: Callable[[dict[str, Any]], object]) -> Mutation:
        return Mutation(name, {}, manifest=edit)

    yield change("ids beyond the model", lambda t: t["model"]["vocab"].update(creates=1 << 20))
    yield change("ids beyond 32 bits", lambda t: t["model"]["vocab"].update(creates=1 << 40))
    yield change("no vocabulary", lambda t: t["model"]["vocab"].clear())
    yield change("other masks", lambda t: t.update(added_tokens=[]))
    yield change("an endless regex", lambda t: t.update(normalizer=_replace("(a|a|s|i)*(s*)*x", "b")))
    yield change("a broken regex", lambda t: t.update(normalizer=_replace("(((", "b")))
    yield change("truncation to 0", lambda t: t.update(truncation=_truncation()))
    yield change("padding to much", lambda t: t.update(padding=_padding()))
    yield manifest("a window of one", lambda m: m["limits"].update(max_length=1))
    yield manifest("a wide window", lambda m: m["limits"].update(max_length=1 << 16))
    yield manifest("a larger vocabulary", lambda m: m.update(vocab_size=1 << 24))
    yield manifest("a smaller vocabulary", lambda m: m.update(vocab_size=4))
    yield manifest("another mask", lambda m: m["tokens"]["mask"].update(id=5))
    yield manifest("a mask of one space", lambda m: m["tokens"]["mask"].update(text=" "))
    yield manifest("every token special", lambda m: m["tokens"].update(special=list(range(16))))
    yield manifest("fp32 as int8", lambda m: m.update(dtype="int8"))
    yield manifest("dtype as a list", lambda m: m.update(dtype=[]))
    yield manifest("no origin", lambda m: m.update(origin=None, parity=3, graphs="x"))


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _truncation() -> dict[str, Any]:
    return {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}


def _padding() -> dict[str, Any]:
    facts = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    return {"strategy": {"Fixed": 1 << 40}, **facts}


def write(source: Path, target: Path, mutation: Mutation, seal: bool) -> Path:
    """Write the mutated bundle to `target`; with `seal`, compute its hashes again."""
    if not target.exists():
        shutil.copytree(source, target)
        (target / "fast" / "link.data").symlink_to(target.parent / "outside.bin")
    for name, whole in read(source).items():
        content = mutation.files.get(name, whole)
        if (target / name).read_bytes() != content:
            (target / name).write_bytes(content)
    manifest = json.loads((source / "manifest.json").read_text())
    if seal:
        for name, content in mutation.files.items():
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    mutation.manifest(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


# ---- tests ------------------------------------------------------------------------------------------


FEW, MANY = 24, 120
DRAWN = [("int8", FEW), *(pytest.param(dtype, MANY, marks=pytest.mark.slow) for dtype in ("fp32", "int8"))]
"""Type of the bundle, and the number of flipped bits."""


@pytest.mark.parametrize(("dtype", "flips"), DRAWN)
def test_damaged_bundles_are_refused(sentence_bundles: dict[str, Path], dtype: str, flips: int, tmp_path: Path) -> None:
    """All of them by the full check, and by FillMask those that touch what it reads."""
    source, count, opened = sentence_bundles[dtype], 0, 0
    for mutation in mutations(read(source), flips):
        if any(content != read(source)[name] for name, content in mutation.files.items()):
            write(source, tmp_path / "b", mutation, seal=False)
            with pytest.raises(BundleError) as caught:
                open_bundle(tmp_path / "b")
            assert "\n" not in str(caught.value), mutation.name
            count += 1
            if OPENED & set(mutation.files):
                with pytest.raises(BundleError):
                    FillMask(tmp_path / "b", threads=1)
                opened += 1
    assert count >= 1.9 * flips + 20
    assert opened >= 1.5 * flips + 20


@pytest.mark.parametrize(("dtype", "flips"), DRAWN)
def test_hostile_bundles_do_no_harm(sentence_bundles: dict[str, Path], dtype: str, flips: int, tmp_path: Path) -> None:
    source = sentence_bundles[dtype]
    size = max(4096, len((source / FAST_DATA).read_bytes()))
    (tmp_path / "outside.bin").write_bytes(b"secret" * size)
    done = subprocess.run(
        [sys.executable, __file__, str(source), str(tmp_path), str(flips)], capture_output=True, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"after {lines[-1:]}: {done.stderr[-2000:]}"
    expected = [mutation.name for mutation in mutations(read(source), flips)]
    assert len(expected) >= 1.9 * flips + 100
    assert lines[-1].startswith("peak")
    assert int(lines[-1].split()[1]) <= MEGABYTES
    assert len(lines) == len(expected) + 1


def main(source: Path, folder: Path, flips: int) -> None:
    """Open and query each mutation and print a line with the outcome; raise if anything is not as it should be."""
    import onnxruntime as ort
    from mlm_onnx.answer import session

    opened: list[str] = []

    class Recorder(ort.InferenceSession):
        def __init__(self, path: str, *rest: Any, **more: Any) -> None:
            opened.append(path)
            super().__init__(path, *rest, **more)

    session.ort.InferenceSession = Recorder
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    for mutation in mutations(read(source), flips):
        target = write(source, folder / "hostile", mutation, seal=True)
        opened.clear()
        signal.alarm(SECONDS)
        outcome = "answered"
        try:
            fill = FillMask(target, threads=1)
            json.dumps(fill(TEXT, joint=True, top_k=2), allow_nan=False)
            json.dumps(fill.score("This model creates a super"), allow_nan=False)
            json.dumps(fill.explain(TEXT), allow_nan=False)
            json.dumps(fill.embed(TEXT).tolist(), allow_nan=False)
            fill("This model " * 100 + "[MASK]")
        except ValueError as error:
            outcome = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        assert "\n" not in outcome, f"{mutation.name}: {outcome}"
        assert outcome.split(":")[0] in ("answered", "BundleError", "QueryError"), f"{mutation.name}: {outcome}"
        if mutation.refused:
            assert outcome.startswith("BundleError"), f"{mutation.name}: {outcome}"
            wrong = {str(target / name) for name in mutation.files}
            assert not wrong & set(opened), f"{mutation.name}: onnxruntime opened {opened}"
        print(json.dumps([mutation.name, outcome]), flush=True)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the process that started this one, too
    print("peak", int(status.split("VmHWM:")[1].split()[0]) >> 10, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)
