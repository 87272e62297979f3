"""Our parameter tree ↔ the weights of a Hugging Face checkpoint: safetensors, and what Flax wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_mlm.config import ModelConfig
from jax_mlm.errors import UserError, first_line, shown
from jax_mlm.hf.names import NAMES, Names, entries
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import expected_shapes, leaves

WEIGHTS, FLAX = "model.safetensors", "flax_model.msgpack"
INDEX = ".index.json"
"""What an index of several such files adds to the name of one."""
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
SPELLINGS = {".gamma": ".weight", ".beta": ".bias", ".kernel": ".weight", ".embedding": ".weight", ".scale": ".weight"}
"""Ends of names in TensorFlow and in Flax → PyTorch's."""


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    """Its name there."""
    load: Callable[[], np.ndarray]
    """Reads it, as it is stored."""


@dataclass
class Tensors:
    """The tensors of a checkpoint, read one at a time, under names in today's spelling; remembers what was read."""

    folder: Path
    files: dict[str, Stored]
    """The tensors by the current spelling of their names."""
    used: set[str] = field(default_factory=set)

    def known_as(self, name: str, prefix: str) -> str | None:
        """Return the name under which a tensor is stored, with or without the encoder's prefix; None if missing."""
        return next((known for known in (name, name.removeprefix(prefix)) if known in self.files), None)

    def read(self, name: str) -> np.ndarray:
        """Return the tensor in float32, as PyTorch lays it out: a Flax kernel is turned."""
        stored = self.files[name]
        self.used.add(name)
        array = stored.load()
        if array.dtype.name not in FLOATS.values():
            raise UserError(
                f"{stored.path}: {stored.name} has type {array.dtype.name}: only floating-point weights can be imported"
            )
        return np.asarray(array.T if stored.name.endswith(".kernel") else array, np.float32)

    def unused(self) -> list[str]:
        """Return the names, as stored, of what was not read; `*` stands for the number of a layer."""
        names = (stored.name for name, stored in self.files.items() if name not in self.used)
        return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})


def open_tensors(folder: Path) -> Tensors:
    """Open the tensors in model.safetensors, in flax_model.msgpack, or in the files of the index of either.

    Raises:
        UserError: no such file, a pickle instead of one, a truncated file, a shard that is missing.
    """
    found = next((name for one in (WEIGHTS, FLAX) for name in (one, one + INDEX) if (folder / name).is_file()), None)
    if found is None and any((folder / name).exists() for name in PICKLES):
        raise UserError(
            f"{folder}/pytorch_model.bin is a pickle, which can run any code when it is opened, so it is not read. "
            'Convert it once, where torch and transformers are installed and you trust the file: python -c "from '
            f"transformers import AutoModelForMaskedLM as M; M.from_pretrained('{folder}').save_pretrained('NEW_DIR')\""
        )
    if found is None:
        raise UserError(f"{folder} holds no {WEIGHTS} (nor {WEIGHTS}{INDEX}, nor Flax's {FLAX})")
    paths = _shards(folder / found) if found.endswith(INDEX) else [folder / found]
    files: dict[str, Stored] = {}
    for stored in chain.from_iterable(map(_in_msgpack if found.startswith(FLAX) else _in_safetensors, paths)):
        today = _today(stored.name)
        if today in files:
            raise UserError(f"{stored.path}: {stored.name} and {files[today].name} are two spellings of one tensor")
        files[today] = stored
    return Tensors(folder, files)


def _in_safetensors(path: Path) -> Iterator[Stored]:
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(_broken(path, error)) from None
    for name in names:
        yield Stored(path, name, partial(_load, path, name))


def _load(path: Path, name: str) -> np.ndarray:
    try:
        with safe_open(path, framework="np") as file:
            kind = file.get_slice(name).get_dtype()
            if kind not in FLOATS:
                raise UserError(f"{path}: {name} has type {kind}: only floating-point weights can be imported")
            return _half(path, name) if kind == "BF16" else file.get_tensor(name)
    except SafetensorError as error:
        raise UserError(_broken(path, error)) from None


def _broken(path: Path, error: Exception, kind: str = "safetensors") -> str:
    return f"{path} is truncated or no {kind} file ({first_line(error)[:200]}): fetch it again"


def _half(path: Path, name: str) -> np.ndarray:
    """Read a bfloat16 tensor by its offset in the file, since safetensors' numpy interface does not."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))[name]
    begin, end = facts["data_offsets"]
    raw = np.memmap(path, np.uint8, "r", offset=8 + size + begin, shape=(end - begin,))
    return np.frombuffer(raw.tobytes(), ml_dtypes.bfloat16).reshape(facts["shape"])


def _in_msgpack(path: Path) -> Iterator[Stored]:
    """Read what `flax.serialization` wrote: nested dicts, or one with `/` in its names (a shard)."""
    try:
        tree = msgpack_restore(path.read_bytes())
        arrays = dict(_leaves(tree))
    except UserError:
        raise
    except Exception as error:  # numpy and msgpack raise whatever a hostile file provokes
        raise UserError(_broken(path, error, "Flax")) from None
    outer = "params." if all(name.startswith("params.") for name in arrays) else ""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            where = f" in {shown(name)}" if name else ""
            raise UserError(f"{path} does not hold Flax weights: expected arrays, found {type(array).__name__}{where}")
        yield Stored(path, name.removeprefix(outer), lambda array=array: array)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # a msgpack file can hold anything
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, inside in tree.items():
        yield from _leaves(inside, f"{name}.{key}".removeprefix(".").replace("/", "."))


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weights: {type(error).__name__} {first_line(error)}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {shown(name)}, which is not there")
    return [index.parent / name for name in names]


def _today(name: str) -> str:
    """Return a name in PyTorch's spelling of today, without the marks of wrappers."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    for old, new in SPELLINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def is_tied(tensors: Tensors, c: ModelConfig) -> bool:
    """Return whether the table is the vocabulary projection: as in config.json, unless both are stored and differ."""
    n = NAMES[c.family]
    decoder = tensors.known_as(f"{n.decoder}.weight", n.prefix)
    table = tensors.known_as(f"{n.prefix}{n.tokens}.weight", n.prefix)
    if not c.tied or decoder is None:
        return c.tied
    if table is None:  # saved once, under the other name
        tensors.files[f"{n.prefix}{n.tokens}.weight"] = tensors.files[decoder]
        tensors.used.add(decoder)
        return True
    return np.array_equal(tensors.read(decoder), tensors.read(table))


def read_params(tensors: Tensors, c: ModelConfig) -> Params:
    """Read the parameter tree of `c`, in float32.

    Raises:
        UserError: a tensor is missing, or its shape is not that of the config.
    """
    n = NAMES[c.family]
    for entry in entries(c):  # before anything of the size that config.json asks for is made
        names = n.bias if entry.path == ("decoder_bias",) else ()
        for name in entry.names:
            _stored_as(tensors, n, name, names)
    shapes = expected_shapes(c)
    arrays = {}
    for entry in entries(c):
        shape = shapes[entry.path][::-1] if entry.kernel else shapes[entry.path]
        shape = (shape[0] // len(entry.names), *shape[1:])
        names = n.bias if entry.path == ("decoder_bias",) else ()
        parts = [_checked(tensors, n, name, names, shape) for name in entry.names]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        arrays[entry.path] = np.ascontiguousarray(joined.T) if entry.kernel else joined
    for name in n.bias:  # the copy of a bias under its other name is not reported
        if (known := tensors.known_as(name, n.prefix)) and c.decoder_bias:
            tensors.used.add(known)
    for name, array in _beside(c).items():
        if name in tensors.files and not np.array_equal(tensors.read(name), array):
            tensors.used.discard(name)
    return unflatten_dict(arrays)


def _stored_as(tensors: Tensors, n: Names, name: str, others: tuple[str, ...]) -> str:
    """Return today's name of a tensor; a UserError where it is missing."""
    known = next((found for other in (*others, name) if (found := tensors.known_as(other, n.prefix))), None)
    if known is None:
        head = " (an encoder saved without its masked-language head?)" if name.startswith(n.head) else ""
        raise UserError(f"{tensors.folder}: the tensor {name} is missing{head}")
    return known


def _checked(tensors: Tensors, n: Names, name: str, others: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    known = _stored_as(tensors, n, name, others)
    array = tensors.read(known)
    if array.shape != shape:
        stored = tensors.files[known]
        turned = array.shape[::-1] if stored.name.endswith(".kernel") else array.shape
        asked = shape[::-1] if stored.name.endswith(".kernel") else shape
        raise UserError(f"{stored.path}: {stored.name} has shape {turned}, where config.json asks for {asked}")
    if not np.isfinite(array).all():
        stored = tensors.files[known]
        raise UserError(f"{stored.path}: {stored.name} holds numbers that are not finite in float32: fetch it again")
    return array


# ---- writing -------------------------------------------------------------------------------------


def _beside(c: ModelConfig) -> dict[str, np.ndarray]:
    """Return what transformers' model has beside ours: ESM's contact head, not trained here, and a constant."""
    if c.family != "esm":
        return {}
    K = c.head_width
    return {
        "esm.contact_head.regression.weight": np.zeros((1, c.layers * c.heads), np.float32),
        "esm.contact_head.regression.bias": np.zeros(1, np.float32),
        "esm.rotary_embeddings.inv_freq": (c.rope_theta ** -(np.arange(0, K, 2) / K)).astype(np.float32),
    }


def write_params(path: Path, params: Params, c: ModelConfig) -> None:
    """Write model.safetensors in the family's names; what is tied is stored once."""
    n, arrays = NAMES[c.family], leaves(params)
    tensors = _beside(c)
    for entry in entries(c):
        array = np.asarray(arrays[entry.path], np.float32)
        for name, part in zip(entry.names, np.split(array.T if entry.kernel else array, len(entry.names)), strict=True):
            tensors[name] = np.ascontiguousarray(part)
    if not c.tied and c.decoder_bias:  # transformers ties the bias with the table, or not at all
        for name in n.bias:
            tensors[name] = tensors[n.bias[-1]]
    save_file(tensors, path, metadata={"format": "pt"})
