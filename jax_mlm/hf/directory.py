"""Turn a whole Hugging Face directory into a run directory, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig, ModelConfig, TaskConfig, TrainConfig
from jax_mlm.data.tokenizer import NAMES, Vocabulary, load_tokenizer, mask_of, size_of, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.files import new_folder
from jax_mlm.hf.card import model_card
from jax_mlm.hf.config import AFTER_PADDING, check_expressible, from_hf, hf_config, known_family
from jax_mlm.hf.names import family_of
from jax_mlm.hf.tasks import check_family, pooling_of, task_of, with_task
from jax_mlm.hf.tokenizer import hf_tokenizer_config, read_tokenizer
from jax_mlm.hf.tokenizer_files import read_json
from jax_mlm.hf.weights import WEIGHTS, Tensors, is_tied, open_tensors, read_body, read_params, write_params
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import at_offset, leaves
from jax_mlm.run.checkpoint import load_params, save_last, saving
from jax_mlm.run.directory import TOKENIZER_FILE, check_name, read_run, read_task, write_run
from jax_mlm.run.lock import NAME, refuse_if_locked, target_locked


@dataclass(frozen=True)
class Imported:
    """What a Hugging Face directory holds, in our terms."""

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    remarks: tuple[str, ...]
    """What the user should know of: tensors not used, embeddings without a token."""
    task: TaskConfig | None = None
    """What a fine-tuned model is for; None for one that predicts masked words."""


def open_hf(folder: Path, family: str | None = None) -> tuple[Tensors, ModelConfig, list[str]]:
    """Return a directory's tensors, the model that they and config.json describe, and a remark where the two differ.

    Raises:
        UserError: something is missing, broken, contradictory or not supported.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a Hugging Face model's directory (config.json, {WEIGHTS}, …)")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a Hugging Face model: it has no config.json")
    values = read_json(folder / "config.json")
    tensors = open_tensors(folder)
    given = values.get("model_type")
    named = family or (family_of(tensors.files) if given is None else given)
    if named is None:
        raise UserError(
            f"{folder}/config.json has no model_type, and the names of its tensors fit none: "
            "python -m jax_mlm.hf import takes --family"
        )
    try:
        model = from_hf(values, known_family(named))
    except ValueError as error:  # a UserError, or a contradiction that ModelConfig noticed
        raise UserError(f"{folder}/config.json: {error}") from None
    if is_tied(tensors, model) == model.tied:
        return tensors, model, []
    remark = "config.json says that table and decoder are tied, two different ones are stored: kept apart"
    return tensors, replace(model, tied=False), [remark]


def read_hf(folder: Path, family: str | None = None, tokenizer: Path | None = None) -> Imported:
    """Read config.json, the safetensors and the tokenizer of a directory; a UserError as in `open_hf`."""
    return _read(folder, family, tokenizer, read_params)


def read_body_of(folder: Path, task: TaskConfig) -> Imported:
    """Read the encoder of a directory, and of its head what one for the task can keep; a UserError as in `open_hf`.

    The task that is returned pools as config.json says.
    """
    read = _read(folder, None, None, lambda tensors, model: read_body(tensors, model, task))
    try:
        return replace(read, task=replace(task, pooling=pooling_of(read_json(folder / "config.json"))))
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None


def _read_own(folder: Path, family: str | None, tokenizer: Path | None, pair: str) -> Imported:
    """Read a directory with the head that its config.json names: of masked words, or of a task.

    `pair` is the column of the second text that a classifier judges, which config.json does not name.
    """
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    try:
        task = task_of(values)
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error}") from None
    if pair:
        if task is None or task.kind != "classify":
            raise UserError(f"--pair {pair}: {folder} is not a classifier, which could judge two texts: leave it out")
        task = replace(task, pair=True, columns=("", pair, ""))
    if task is None:
        return read_hf(folder, family, tokenizer)
    read = _read(folder, family, tokenizer, lambda tensors, model: read_params(tensors, model, task))
    return replace(read, task=task)


def _read(
    folder: Path, family: str | None, tokenizer: Path | None, params_of: Callable[[Tensors, ModelConfig], Params]
) -> Imported:
    tensors, model, remarks = open_hf(folder, family)
    params = params_of(tensors, model)
    if unused := tensors.unused():
        remarks.append(f"not used: {', '.join(unused)}")
    read, more = (load_tokenizer(tokenizer), []) if tokenizer else read_tokenizer(folder)
    remarks += more
    if model.token_dropout:
        mask = mask_of(read)
        if model.mask_id not in (-1, mask):
            raise UserError(
                f"{folder}/config.json: mask_token_id is {model.mask_id}, where the tokenizer's mask has {mask}"
            )
        model = replace(model, mask_id=mask)
    remarks += _compare_sizes(folder, model, size_of(read))
    return Imported(model, params, read, tuple(remarks))


def _compare_sizes(folder: Path, model: ModelConfig, tokens: int) -> list[str]:
    """Return a remark where the table is padded; a UserError where it is too small."""
    if tokens > model.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokens} tokens, the embedding only {model.vocab_size}: "
            "they do not belong together (python -m jax_mlm.hf import takes another one with --tokenizer FILE)"
        )
    if tokens == model.vocab_size:
        return []
    spare = model.vocab_size - tokens
    return [f"the tokenizer has {tokens} tokens, the embedding {model.vocab_size}: {spare} rows stand for no token"]


def import_hf(
    folder: Path, run: Path, family: str | None = None, tokenizer: Path | None = None, pair: str = ""
) -> Imported:
    """Write a run directory with the model as its checkpoint of step 0."""
    _check_free(run)
    check_name(run)
    with target_locked(run, "RUN"):
        refuse_if_locked(run / NAME, run)
        imported = _read_own(folder, family, tokenizer, pair)
        model = imported.model
        config = TrainConfig(preset=model.family, model=model, corpus=DataConfig(length=min(512, model.max_length)))
        task = imported.task
        tuned = {"task": dataclasses.asdict(replace(task, overlap=config.corpus.length // 4))} if task else None
        with new_folder(run) as partial:
            imported.tokenizer.save(str(partial / TOKENIZER_FILE))
            write_run(partial, config, {}, {"files": [], "imported_from": str(folder.resolve())}, tuned)
            with saving(partial) as manager:
                state = {"params": imported.params, "step": jnp.int32(0)}
                save_last(manager, state, {"step": 0, "elapsed": 0.0, "horizon": 0}, None)
    return imported


def export_hf(run: Path, folder: Path, checkpoint: Literal["best", "latest"] = "best") -> int:
    """Write a directory that transformers loads, and return the step of the checkpoint in it."""
    _check_free(folder)
    with target_locked(folder, "HF_DIR"):
        return _export(run, folder, checkpoint)


def _export(run: Path, folder: Path, checkpoint: Literal["best", "latest"]) -> int:
    config, task = read_run(run), read_task(run)
    if task is not None:
        check_family(config.model.family, task.kind, str(run))
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    step, params = load_params(run, checkpoint)
    _compare_sizes(run, config.model, vocabulary.size)
    params, model, pad = in_layout(params, config.model, tokenizer, vocabulary)
    check_expressible(model, pad)
    special = {
        role: None if (id := getattr(vocabulary, role)) is None else tokenizer.id_to_token(id)
        for role in ("pad", "mask", "unk", "cls", "sep")
    }
    with new_folder(folder, sum(array.nbytes for array in leaves(params).values())) as partial:
        write_params(partial / WEIGHTS, params, model, task)
        tokenizer.save(str(partial / "tokenizer.json"))
        described = hf_config(model, pad, vocabulary.cls, vocabulary.sep)
        _write_json(partial / "config.json", with_task(described, task) if task else described)
        _write_json(
            partial / "tokenizer_config.json", hf_tokenizer_config(special, model.max_length, model.token_types)
        )
        _write_json(
            partial / "special_tokens_map.json", {f"{role}_token": text for role, text in special.items() if text}
        )
        card = model_card(folder, run, config, params, step, special["mask"] or "[MASK]", task)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return step


def in_layout(
    params: Params, model: ModelConfig, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> tuple[Params, ModelConfig, int]:
    """Return the model with its first position in the row that its family gives it, and the padding's id."""
    pad = vocabulary.pad
    if model.family not in AFTER_PADDING:
        return *at_offset(params, model, 0), pad
    if tokenizer.id_to_token(pad) not in NAMES["pad"] and model.position_offset:
        pad = model.position_offset - 1
    return *at_offset(params, model, pad + 1), pad


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: choose another name, or remove it first")
