"""What transformers' Flax classes wrote is read: msgpack, in shards too, and safetensors with Flax's names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.models import MODELS, assert_trees_equal, randomised
from tokenizers import Tokenizer

from jax_mlm.errors import UserError
from jax_mlm.hf.__main__ import main
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.directory import read_hf
from jax_mlm.hf.weights import open_tensors, write_params

FLAX = ("bert", "roberta", "xlm-roberta", "albert", "distilbert")
"""The families for which transformers had Flax classes."""
Save = Callable[[Path, dict[str, np.ndarray]], Any]


def nested(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    return unflatten_dict({tuple(name.split(".")): array for name, array in tensors.items()})


def whole(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(nested(tensors)))


def with_outer_name(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize({"params": nested(tensors)}))


def in_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    flat = {name.replace(".", "/"): array for name, array in tensors.items()}
    where = {name: f"flax_model-0000{1 + i % 2}-of-00002.msgpack" for i, name in enumerate(flat)}
    for file in set(where.values()):
        shard = {name: array for name, array in flat.items() if where[name] == file}
        (folder / file).write_bytes(msgpack_serialize(shard))
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def in_safetensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")


def in_flax(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """A tensor's name and layout in transformers' Flax classes: kernels are turned, norms have scales."""
    if not name.endswith(".weight"):
        return name, array
    stem = name.removesuffix("weight")
    if array.ndim == 1:
        return f"{stem}scale", array
    return (f"{stem}embedding", array) if "_embeddings." in name else (f"{stem}kernel", array.T)


@pytest.fixture
def make_flax(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[str, Save], Path]:
    """Writes a family's directory with Flax's names and layouts."""

    def make(family: str, save: Save, tied: bool = True) -> Path:
        model, folder = replace(MODELS[family], tied=tied), tmp_path / "flax"
        folder.mkdir()
        write_params(tmp_path / "ours.safetensors", randomised(model), model)
        (folder / "config.json").write_text(json.dumps(hf_config(model, 0, None, None)))
        tokenizer.save(str(folder / "tokenizer.json"))
        save(folder, dict(in_flax(*item) for item in load_file(tmp_path / "ours.safetensors").items()))
        return folder

    return make


@pytest.mark.parametrize("save", [whole, with_outer_name, in_shards, in_safetensors])
@pytest.mark.parametrize("family", FLAX)
def test_flax_weights_are_ours_bit_for_bit(family: str, save: Save, make_flax: Any) -> None:
    imported = read_hf(make_flax(family, save))
    assert imported.model == MODELS[family]
    assert_trees_equal(imported.params, randomised(MODELS[family]))
    assert len(imported.remarks) == 1, "every tensor was read"


@pytest.mark.parametrize("family", FLAX)
def test_a_decoder_of_its_own_is_turned_as_well(family: str, make_flax: Any) -> None:
    imported = read_hf(make_flax(family, whole, tied=False))
    assert_trees_equal(imported.params, randomised(replace(MODELS[family], tied=False)))


def test_halves_become_float32_and_integers_are_refused(make_flax: Any) -> None:
    def halved(folder: Path, tensors: dict[str, np.ndarray]) -> None:
        whole(folder, {name: jnp.asarray(array, jnp.bfloat16) for name, array in tensors.items()})

    folder = make_flax("bert", halved)
    expected = np.asarray(jnp.asarray(randomised(MODELS["bert"])["token_table"], jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(read_hf(folder).params["token_table"], expected)
    whole(folder, {"bert.embeddings.word_embeddings.embedding": np.ones((64, 16), np.int32)})
    tensors = open_tensors(folder)
    with pytest.raises(UserError, match=r"word_embeddings\.embedding has type int32"):
        tensors.read(next(iter(tensors.files)))


def test_a_misshapen_kernel_is_named_as_it_is_stored(make_flax: Any) -> None:
    def misshapen(folder: Path, tensors: dict[str, np.ndarray]) -> None:
        whole(folder, tensors | {"cls.predictions.transform.dense.kernel": np.ones((16, 8), np.float32)})

    with pytest.raises(UserError, match=r"dense\.kernel has shape \(16, 8\), where config\.json asks for \(16, 16\)"):
        read_hf(make_flax("bert", misshapen))


ARRAY = msgpack.packb([[1 << 40, 1 << 20], "float32", b"1234"])
HOSTILE = (
    b"x",
    b"",
    b"\xc1",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\x81\xa1a" * 5000,
    msgpack.packb([1, 2]),
    msgpack.packb({"a": 3}),
    msgpack.packb({"a": "text", "b": None}),
    msgpack.packb({"a": msgpack.ExtType(1, ARRAY)}),
    msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[1], "object", b"12345678"]))}),
    msgpack.packb({"a": msgpack.ExtType(1, b"garbage")}),
    msgpack.packb({"a": msgpack.ExtType(3, msgpack.packb([[1], "nonsense", b""]))}),
    msgpack.packb({"a": msgpack.ExtType(99, b"")}),
    msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1 << 60}, "chunks": {}}}),
    msgpack.packb({"__msgpack_chunked_array__": True}),
)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_msgpack_is_one_line(content: bytes, tmp_path: Path, make_flax: Any, capsys: Any) -> None:
    folder = make_flax("bert", lambda folder, _: (folder / "flax_model.msgpack").write_bytes(content))
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "flax_model.msgpack" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_msgpack_is_refused_or_read(data: st.DataObject) -> None:
    good = msgpack_serialize(
        {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(4, np.float16)}
    )
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + data.draw(st.binary(max_size=3)) + good[at + data.draw(st.integers(0, 2)) :]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "flax_model.msgpack").write_bytes(damaged)
        arrays, said = [], "flax_model.msgpack"
        try:
            tensors = open_tensors(Path(folder))
            arrays = [tensors.read(name) for name in tensors.files]
        except UserError as error:
            said = str(error)
    assert "flax_model.msgpack" in said
    assert "\n" not in said
    assert all(array.dtype == np.float32 for array in arrays)
