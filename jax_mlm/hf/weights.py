"""Our parameter tree ↔ the safetensors files of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jax_mlm.config import ModelConfig
from jax_mlm.errors import UserError
from jax_mlm.hf.names import NAMES, Names, entries
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import expected_shapes, leaves

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
HALVES = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


# ---- reading -------------------------------------------------------------------------------------


@dataclass
class Tensors:
    """The tensors of a checkpoint, read one at a time, under names in today's spelling; remembers what was read."""

    folder: Path
    files: dict[str, tuple[Path, str]]
    """Today's name → its file, and its name there."""
    used: set[str] = field(default_factory=set)

    def known_as(self, name: str, prefix: str) -> str | None:
        """Return the name under which a tensor is stored, with or without the encoder's prefix; None if missing."""
        return next((known for known in (name, name.removeprefix(prefix)) if known in self.files), None)

    def read(self, name: str) -> np.ndarray:
        """Return the tensor in float32."""
        path, stored = self.files[name]
        self.used.add(name)
        try:
            with safe_open(path, framework="np") as file:
                kind = file.get_slice(stored).get_dtype()
                if kind not in ("F32", "F64", *HALVES):
                    raise UserError(f"{path}: {stored} has type {kind}: only floating-point weights can be imported")
                array = _half(path, stored) if kind == "BF16" else file.get_tensor(stored)
        except SafetensorError as error:
            raise UserError(_broken(path, error)) from None
        return np.asarray(array, np.float32)

    def unused(self) -> list[str]:
        """Return the names, as stored, of what was not read."""
        return sorted(stored for name, (_, stored) in self.files.items() if name not in self.used)


def _broken(path: Path, error: Exception) -> str:
    return f"{path} is truncated or no safetensors file ({str(error).splitlines()[0]}): fetch it again"


def _half(path: Path, name: str) -> np.ndarray:
    """Read a bfloat16 tensor by its offset in the file, since safetensors' numpy interface does not."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        facts = json.loads(file.read(size))[name]
    begin, end = facts["data_offsets"]
    raw = np.memmap(path, np.uint8, "r", offset=8 + size + begin, shape=(end - begin,))
    return np.frombuffer(raw.tobytes(), ml_dtypes.bfloat16).reshape(facts["shape"])


def open_tensors(folder: Path) -> Tensors:
    """Open the tensors in model.safetensors, or in the files of its index.

    Raises:
        UserError: no such file, a pickle instead of one, a truncated file, a shard that is missing.
    """
    if (folder / WEIGHTS).is_file():
        paths = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        paths = _shards(folder / INDEX)
    elif any((folder / name).exists() for name in PICKLES):
        raise UserError(
            f"{folder}/pytorch_model.bin is a pickle, which can run any code when it is opened, so it is not read. "
            'Convert it once, where torch and transformers are installed and you trust the file: python -c "from '
            f"transformers import AutoModelForMaskedLM as M; M.from_pretrained('{folder}').save_pretrained('NEW_DIR')\""
        )
    else:
        raise UserError(f"{folder} holds no {WEIGHTS} (nor {INDEX})")
    files: dict[str, tuple[Path, str]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:
                stored = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(_broken(path, error)) from None
        for name in stored:
            today = _today(name)
            if today in files:
                raise UserError(f"{path}: {name} and {files[today][1]} are two spellings of one tensor")
            files[today] = path, name
    return Tensors(folder, files)


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of safetensors files: {type(error).__name__} {error}") from None
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there")
    return [index.parent / name for name in names]


def _today(name: str) -> str:
    """Return a name in today's spelling, without TensorFlow's gamma and beta and the marks of wrappers."""
    for wrapper in ("module.", "_orig_mod."):
        name = name.removeprefix(wrapper)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
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
    n, shapes = NAMES[c.family], expected_shapes(c)
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
    return unflatten_dict(arrays)


def _checked(tensors: Tensors, n: Names, name: str, others: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    known = next((found for other in (*others, name) if (found := tensors.known_as(other, n.prefix))), None)
    if known is None:
        head = " (an encoder saved without its masked-language head?)" if name.startswith(n.head) else ""
        raise UserError(f"{tensors.folder}: the tensor {name} is missing{head}")
    array = tensors.read(known)
    if array.shape != shape:
        path, stored = tensors.files[known]
        raise UserError(f"{path}: {stored} has shape {array.shape}, where config.json asks for {shape}")
    return array


# ---- writing -------------------------------------------------------------------------------------


def write_params(path: Path, params: Params, c: ModelConfig) -> None:
    """Write model.safetensors in the family's names; what is tied is stored once."""
    n, arrays = NAMES[c.family], leaves(params)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries(c):
        array = np.asarray(arrays[entry.path], np.float32)
        for name, part in zip(entry.names, np.split(array.T if entry.kernel else array, len(entry.names)), strict=True):
            tensors[name] = np.ascontiguousarray(part)
    if not c.tied and c.decoder_bias:  # transformers ties the bias with the table, or not at all
        for name in n.bias:
            tensors[name] = tensors[n.bias[-1]]
    save_file(tensors, path, metadata={"format": "pt"})
