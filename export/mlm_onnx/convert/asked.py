"""What int8 is measured on: words hidden in a text, or the examples of a task, and how good the answers to them are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.data.align import Windows
from jax_mlm.data.examples import read_file
from jax_mlm.data.labels import Columns
from jax_mlm.data.tokenizer import Vocabulary, as_text, vocabulary_of
from jax_mlm.evals.answers import AT_ONCE, Laid, answers, lay_out
from jax_mlm.evals.files import check_examples, is_labelled
from jax_mlm.evals.labelled import item_logits
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.classify import make_logits
from jax_mlm.tasks.scores import MODES
from mlm_onnx.bundle.layout import BundleError, Json
from mlm_onnx.convert.heads import targets_of
from mlm_onnx.convert.targets import FILL_MASK, Target

MASKED = 0.15
"""Fraction of a text's tokens that is hidden, all replaced by the mask token."""
LONGEST, MOST, FEWEST = 128, 2000, 100
"""Most tokens per text; most hidden tokens in total, and fewest (with fewer, the result would mean nothing)."""
MOST_EXAMPLES, FEWEST_EXAMPLES = 2000, 20
ALLOWED, ALLOWED_IN_TASKS = 0.01, 0.005
"""Loss of accuracy, or of a task's metric, from int8 above which matrices stay in float32."""
USUAL = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}
Query = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(ids [1, S] with masks in them, their positions [1, P], the hidden ids [P])."""
Results = Sequence[np.ndarray]


@dataclass(frozen=True)
class Asked:
    """Real text for a graph, and how good its answers are."""

    target: Target
    model: ModelConfig
    params: Params
    rows: Sequence[Mapping[str, np.ndarray]]
    """The graph's inputs, one row at a time."""
    reduce: Callable[[np.ndarray], np.ndarray]
    """The graph's output for a row → what is kept of it."""
    judge: Callable[[Results, Results], Json]
    """What is kept in float32 and in int8 → figures, of which `drop` is the loss."""
    allowed: float
    """Largest loss."""
    texts: int


class Tuned(NamedTuple):
    """What a model was fine-tuned for."""

    task: TaskConfig
    length: int
    """Tokens of a window."""


# ---- hidden words --------------------------------------------------------------------------------


def masked_words(model: ModelConfig, params: Params, tokenizer: Tokenizer, vocabulary: Vocabulary, file: Path) -> Asked:
    """Return the lines of a text file with some of their tokens hidden."""
    asked = queries(file, tokenizer, vocabulary, model.max_length)
    truth = np.concatenate([true for _, _, true in asked])

    def judge(exact: Results, coarse: Results) -> Json:
        return against(np.concatenate(exact), np.concatenate(coarse), truth)

    rows = [{"input_ids": ids, "positions": at} for ids, at, _ in asked]
    return Asked(FILL_MASK, model, params, rows, lambda logits: logits[0].argmax(-1), judge, ALLOWED, len(asked))


def queries(file: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, max_length: int) -> list[Query]:
    """Return the lines of a text file, each with some tokens hidden, the same ones on every call."""
    _check(file)
    rng, asked, hidden = np.random.default_rng(0), [], 0
    reader = as_text(tokenizer)  # as in training: what looks like a special token in a text is not one
    before, after = ([] if id is None else [id] for id in (vocabulary.cls, vocabulary.sep))

    def frame(ids: list[int]) -> list[int]:
        return [*before, *ids[: min(LONGEST, max_length) - len(before) - len(after)], *after]

    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            ids = np.array(frame(reader.encode(line.strip(), add_special_tokens=False).ids), np.int64)
            eligible = np.flatnonzero(~np.isin(ids, vocabulary.special))
            if len(eligible) < 2:
                continue
            at = np.sort(rng.permutation(eligible)[: max(1, round(MASKED * len(eligible)))])
            true = ids[at].copy()
            ids[at] = vocabulary.mask
            asked.append((ids[None], at[None], true))
            hidden += len(at)
            if hidden >= MOST:
                break
    if hidden < FEWEST:
        raise BundleError(f"--calibrate {file}: has only {hidden} tokens to hide; at least {FEWEST} are needed")
    return asked


def against(expected: np.ndarray, int8: np.ndarray, truth: np.ndarray) -> Json:
    """Compare the first answers in int8 with those in float32, and both with the truth."""
    exact, coarse = float((expected == truth).mean()), float((int8 == truth).mean())
    agreement = float((expected == int8).mean())
    accuracy = {"fp32": exact, "int8": coarse}
    return {"tokens": len(truth), "top1_agreement": agreement, "accuracy": accuracy, "drop": exact - coarse}


def _check(file: Path) -> None:
    if not file.is_file():
        raise BundleError(f"--calibrate {file}: no such file")


# ---- examples of a task --------------------------------------------------------------------------


def labelled_examples(model: ModelConfig, params: Params, tokenizer: Tokenizer, tuned: Tuned, file: Path) -> Asked:
    """Return the examples of a file like the one that the model learned.

    Raises:
        BundleError: it has too few examples with labels.
        UserError: it is not such a file.
    """
    _check(file)
    task = tuned.task
    if task.kind == "classify" and task.pair and not task.columns[1]:
        raise BundleError(
            f"--calibrate {file}: the run does not name the column of the second text: import the model with "
            "python -m jax_mlm.hf import HF_DIR RUN --pair COLUMN"
        )
    examples, _, _ = read_file(task.kind, file, Columns(*task.columns))
    check_examples(examples, task)
    examples = [each for each in examples if is_labelled(each, task)][:MOST_EXAMPLES]
    if len(examples) < FEWEST_EXAMPLES:
        raise BundleError(
            f"--calibrate {file}: has only {len(examples)} examples with labels; at least {FEWEST_EXAMPLES} are needed"
        )
    laid = lay_out(tokenizer, examples, task, tuned.length)
    packed = laid.rows(tuned.length, vocabulary_of(tokenizer).pad)
    logits = jax.jit(make_logits(model, task, jnp.float32))
    theirs = item_logits(logits, jax.device_put(params), packed, task, min(AT_ONCE, len(packed)), lambda x: x)
    metric = task.metric if MODES[task.metric] == "max" else USUAL[task.problem] if task.kind == "classify" else "f1"

    def judge(exact: Results, coarse: Results) -> Json:
        count = len(laid.targets)
        both = {"fp32": exact, "int8": coarse}
        both = {name: together(task, laid.windows, count, results) for name, results in both.items()}
        score = {name: laid.measured(task, each)[1].figures[metric] for name, each in both.items()}
        wanted = decoded(task, laid, theirs)
        same = {
            name: float(np.mean([a == b for a, b in zip(decoded(task, laid, each), wanted, strict=True)]))
            for name, each in both.items()
        }
        drop = score["fp32"] - score["int8"]
        return {"examples": len(examples), "metric": metric, "score": score, "as_jax": same, "drop": drop}

    target, rows = targets_of(task)[0], inputs_of(laid.windows)
    return Asked(target, model, params, rows, lambda logits: logits, judge, ALLOWED_IN_TASKS, len(examples))


def inputs_of(windows: Windows) -> list[dict[str, np.ndarray]]:
    """Return what a graph reads of each window in which something is predicted, as rows of their own."""
    first, slots = windows.first, windows.first_slot
    return [
        {
            "input_ids": windows.tokens[first[i] : first[i + 1]][None].astype(np.int64),
            "token_type_ids": windows.types[first[i] : first[i + 1]][None].astype(np.int64),
            "positions": windows.at[slots[i] : slots[i + 1]][None].astype(np.int64),
        }
        for i in range(len(first) - 1)
        if slots[i] < slots[i + 1]
    ]


def together(task: TaskConfig, windows: Windows, items: int, results: Results) -> np.ndarray:
    """Return the logits [items, K] that a graph's outputs for the windows make up; of answers, those of all tokens."""
    slots = np.concatenate([each.reshape(-1, each.shape[-1]) for each in results])
    if task.kind == "answer":
        return slots
    total = np.zeros((items, slots.shape[-1]), np.float32)
    np.add.at(total, windows.items, slots * windows.shares[:, None])
    return total


def decoded(task: TaskConfig, laid: Laid, logits: np.ndarray) -> list[object]:
    """Return what is answered for each example, without probabilities; numbers to two digits."""
    found: list[object] = []
    for answer in answers(task, laid, logits):
        if task.kind == "tag":
            found.append([(each["label"], each["start"], each["end"]) for each in answer["entities"]])
        elif task.kind == "answer":
            found.append((answer["start"], answer["end"]))
        else:
            said = answer.get("prediction", answer.get("predictions"))
            found.append(f"{said:.2g}" if isinstance(said, float) else said)
    return found
