"""Hugging Face directories with a hostile file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.hf import __main__ as hf
from support.garbage import Outcome, attempt, byte_damage, damaged

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, "mask_token": "[MASK]",
    "pad_token": {"content": "[PAD]", "special": True, "lstrip": False},
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
    "additional_special_tokens": [], "do_lower_case": False,
}  # fmt: skip


@st.composite
def models(draw: st.DrawFn, model: Path) -> dict[str, bytes]:
    """Return files to put into a model's directory in the place of its own; empty ones go."""
    tensors = load_file(model / "model.safetensors")
    match draw(
        st.sampled_from(("config", "config", "header", "header", "weights", "index", "msgpack", "tokenizer", "old"))
    ):
        case "config":
            return {"config.json": draw(damaged((model / "config.json").read_bytes()))}
        case "header":
            return {"model.safetensors": draw(headers((model / "model.safetensors").read_bytes()))}
        case "weights":
            kind = draw(st.sampled_from((np.float16, np.float64, np.int8, np.int64, np.uint8, np.bool_)))
            name = draw(st.sampled_from(sorted(tensors)))
            turned = draw(
                st.sampled_from((lambda x: x.T, lambda x: x[:0], lambda x: x.astype(kind), lambda x: x * np.inf))
            )
            changed = np.ascontiguousarray(turned(tensors[name]))
            return {
                "model.safetensors": draw(
                    st.one_of(st.just(save(tensors | {name: changed})), byte_damage(save(tensors)))
                )
            }
        case "index":
            names = [
                "a.safetensors",
                "../a.safetensors",
                "/etc/passwd",
                "..",
                "",
                "config.json",
                "a\0b",
                3,
                None,
                ["a"],
                {},
            ]
            index = {"metadata": {}, "weight_map": {name: draw(st.sampled_from(names)) for name in list(tensors)[:4]}}
            content = draw(st.one_of(st.just(json.dumps(index).encode()), damaged(json.dumps(index).encode())))
            return {"model.safetensors": b"", "model.safetensors.index.json": content}
        case "msgpack":
            tree = unflatten_dict({tuple(name.split(".")): array for name, array in tensors.items()})
            content = draw(
                st.one_of(byte_damage(msgpack_serialize(tree)), st.sampled_from(MSGPACKS), st.just(nested(5000)))
            )
            return {"model.safetensors": b"", "flax_model.msgpack": content}
        case "tokenizer":
            name = draw(st.sampled_from(("tokenizer_config.json", "tokenizer.json")))
            return {name: draw(damaged((model / name).read_bytes()))}
        case _:
            name, content = draw(st.sampled_from(OLD))
            return {"tokenizer.json": b"", **BESIDE.get(name, {}), name: draw(byte_damage(content))}


def nested(depth: int) -> bytes:
    """Return a msgpack of dicts in dicts."""
    return b"\x81\xa1a" * depth + b"\x01"


MSGPACKS = (
    b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc0",
    b"\x81\xa1a\xc7\x05\x01\x93\x91\x01\xa1O", b"\x81\xa1a\xc7\x09\x01\x93\x91\xce\xff\xff\xff\xff\xa2<f",
    b"\x81\x01\x02",
    b"\x81\xa1a\xd4\x05x", b"\x81\xa1a\xa6object", b"\x81\xb5__msgpack_chunked_array__\xc3",
)  # fmt: skip


def piece_of(text: bytes, kind: int) -> bytes:
    """Return a piece as a SentencePiece model stores it."""
    return bytes([10, len(text) + 9, 10, len(text)]) + text + b"\x15\0\0\x80\xbf\x18" + bytes([kind])


OLD = (
    ("vocab.txt", "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", "the")).encode()),
    ("vocab.json", b'{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7}'),
    ("merges.txt", b"#version: 0.2\na b\n"),
    ("spiece.model", b"".join(map(piece_of, (b"<unk>", b"[CLS]", b"[SEP]", b"<pad>", b"[MASK]", b"\xe2\x96\x81a"),
                                  (2, 3, 3, 3, 3, 1)))),
    ("spiece.model", b"\x0a\xff\xff\xff" * 3 + b"\xff" * 200_000),
    ("added_tokens.json", json.dumps({"x": 16, "y": 17}).encode()),
    ("special_tokens_map.json", json.dumps({"mask_token": "[MASK]", "cls_token": {"content": "[CLS]"}}).encode()),
)  # fmt: skip
BESIDE = {
    "merges.txt": {"vocab.json": OLD[1][1]}, "vocab.json": {"merges.txt": OLD[2][1]},
    "added_tokens.json": {"vocab.txt": OLD[0][1]}, "special_tokens_map.json": {"vocab.txt": OLD[0][1]},
}  # fmt: skip


@st.composite
def headers(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a safetensors file whose header lies."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    how = draw(st.sampled_from(("damage", "damage", "size", "offsets", "double")))
    if how == "size":
        number = draw(st.sampled_from((0, 1, size - 1, size + 1, len(content), 1 << 31, 1 << 40, (1 << 64) - 1)))
        return number.to_bytes(8, "little") + header + data
    if how == "damage":
        header = draw(damaged(header))
    elif how == "double":
        header = header.replace(b"{", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},', 1)
    else:
        facts = json.loads(header)
        name = draw(st.sampled_from([name for name in facts if name != "__metadata__"]))
        facts[name]["data_offsets"] = draw(
            st.sampled_from(
                ([0, 4], [4, 0], [0, len(data) * 2], [-4, 0], [0, 1 << 63], [1 << 40, 1 << 41], [0], [0.5, 4])
            )
        )
        facts[name]["dtype"] = draw(st.sampled_from(("F32", "F64", "BF16", "F16", "I8", "BOOL", "F8_E4M3", "X", "")))
        facts[name]["shape"] = draw(
            st.sampled_from((facts[name]["shape"], [], [1 << 32, 1 << 32], [1 << 62], [-1], [0]))
        )
        header = json.dumps(facts).encode()
    return len(header).to_bytes(8, "little") + header + data


def try_model(case: tuple[Path, dict[str, bytes]], folder: Path) -> Outcome:
    model, files = case
    shutil.copytree(model, folder / "model")
    for name, content in files.items():
        (folder / "model" / name).write_bytes(content) if content else (folder / "model" / name).unlink(missing_ok=True)
    outcome = attempt(lambda: hf.main(["import", "model", "run"]), folder)
    if outcome.status == 0:  # what was taken for a model can be used
        vocabulary_of(load_tokenizer(folder / "run" / "tokenizer.json"))
    return outcome
