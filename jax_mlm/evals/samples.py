"""The same few held-out sentences at every evaluation, with one word hidden in each, to watch the model learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Int
from tokenizers import Tokenizer, decoders

from jax_mlm.config import Json
from jax_mlm.data.batches import Rows
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import Forward
from jax_mlm.parallel.compile import compile_step

COUNT = 4
"""Number of sentences shown."""
LONGEST, SHORTEST = 32, 5
"""Bounds in tokens: a sentence is cut after the first full stop that leaves at least the shortest."""
SEARCHED = 400
"""Number of documents, evenly spaced, that are searched for readable sentences."""
TOP_K = 3
BROKEN = "\ufffd"
"""What part of a character is decoded to."""


class Sample(NamedTuple):
    """A sentence as tokens, without [CLS] and [SEP], and the position of the word to hide."""

    ids: tuple[int, ...]
    at: int
    split: tuple[str, str]
    """The text before and after the word."""
    right: str
    """The hidden word."""
    text: str
    """The sentence with the mask token instead of the word."""


class Answer(NamedTuple):
    """What the model predicts for a sample's gap."""

    text: str
    right: str
    probability: float
    """Probability of the right word."""
    candidates: tuple[tuple[str, float], ...]
    """The likeliest words and their probabilities."""
    split: tuple[str, str]
    """The text before and after the gap."""


def choose_samples(rows: Rows, tokenizer: Tokenizer, count: int = COUNT) -> tuple[Sample, ...]:
    """Choose sentences from all over the rows' documents, each with one whole word to hide; the same at every call.

    Readable sentences (words, no unknown tokens) come first. A text with too few words gives fewer than `count`.
    """
    candidates = list(_sentences(rows, tokenizer))
    readable = [c for c in candidates if c[2]] or candidates
    if not readable:
        return ()
    chosen = [readable[i * len(readable) // count] for i in range(count)]
    mask = tokenizer.id_to_token(rows.vocabulary.mask) or "[MASK]"
    samples: dict[tuple[tuple[int, ...], int], Sample] = {}
    for number, (ids, positions, _) in enumerate(chosen):
        # the golden ratio spreads the gaps over early and late words, and over one sentence chosen several times
        at = positions[int(len(positions) * ((number + 1) * 0.618034 % 1))]
        samples.setdefault((ids, at), _sample(ids, at, tokenizer, mask))
    return tuple(samples.values())


def _sentences(rows: Rows, tokenizer: Tokenizer) -> Iterator[tuple[tuple[int, ...], list[int], bool]]:
    """Yield first sentences of evenly spaced documents: tokens, positions of words to hide, and readability."""
    heads = np.flatnonzero(np.isin(rows.starts, rows.files.documents))
    heads = heads if len(heads) else np.arange(len(rows.starts))
    vocabulary = rows.vocabulary
    room = min(LONGEST, rows.length - (vocabulary.cls is not None) - (vocabulary.sep is not None))
    special = set(vocabulary.special)
    for piece in heads[np.unique(np.arange(SEARCHED) * len(heads) // SEARCHED)]:
        where = int(rows.starts[piece]) + np.arange(min(int(rows.sizes[piece]), LONGEST + 1))
        ids = [int(i) for i in rows.files.tokens[where]]
        begins = [*rows.files.begins_word(where).tolist(), True]
        words = [tokenizer.decode([i], skip_special_tokens=False).strip() for i in ids]
        stops = [n for n, word in enumerate(words, 1) if n >= SHORTEST and word in (".", "!", "?")]
        size = min(len(ids), room)
        if stops and stops[0] <= room:
            size = stops[0]
        while size < len(ids) and size > 1 and not begins[size]:
            size -= 1  # not in the middle of a word
        while size > 1 and _text(tokenizer, ids[:size]).endswith(BROKEN):
            size -= 1  # nor of a character
        ids, words = ids[:size], words[:size]
        ordinary = [n for n in range(size) if ids[n] not in special]
        ordinary = [n for n in ordinary if BROKEN not in words[n]] or ordinary
        whole_words = [n for n in ordinary if begins[n] and begins[n + 1] and words[n].isalpha() and len(words[n]) > 2]
        text = _text(tokenizer, ids).strip()
        letters = sum(c.isalpha() or c.isspace() for c in text) / max(len(text), 1)
        readable = len(whole_words) >= 3 and size >= SHORTEST and letters > 0.85 and len(ordinary) == size
        if whole_words or ordinary:
            yield tuple(ids), whole_words or ordinary, readable and "@" not in text


def _sample(ids: tuple[int, ...], at: int, tokenizer: Tokenizer, mask: str) -> Sample:
    left, word, right = (_text(tokenizer, some) for some in (ids[:at], ids[at : at + 1], ids[at + 1 :]))
    before = " " if left and (word[:1].isspace() or left[-1:].isspace()) else ""
    after = " " if right and word.strip() and word[-1:].isspace() else ""
    split = (f"{left.strip()}{before}", f"{after}{right.rstrip()}")
    return Sample(ids, at, split, word.strip(), mask.join(split))


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode tokens as they go on after a word, with the space before them if there is one.

    A word of --add-tokens gets back the space before it, which is part of its token.
    """
    added = tokenizer.get_added_tokens_decoder()
    if tokenizer.decoder is None:
        return "".join(f" {tokenizer.id_to_token(id)}" for id in ids)
    parts: list[str] = []
    for whole, some in groupby(ids, lambda id: id in added and added[id].lstrip and not added[id].special):
        if whole:
            parts += [f" {added[id].content}" for id in some]
        else:
            tokens = [tokenizer.id_to_token(id) or "" for id in some if id not in added or not added[id].special]
            if isinstance(tokenizer.decoder, decoders.BPEDecoder):  # it would leave out the space after the last word
                parts += [token.replace(tokenizer.decoder.suffix, " ") for token in tokens]
            else:
                parts.append(tokenizer.decoder.decode(["x", *tokens])[1:])
    return "".join(parts)


def compile_samples(
    forward: Forward, params: Params, samples: Sequence[Sample], rows: Rows, tokenizer: Tokenizer, sharding: Sharding
) -> Callable[[Params], tuple[Answer, ...]]:
    """Return `answer(params)`, the model's answers to the samples; it is compiled here, once, ahead of the loop.

    The samples make one batch as long as the training rows, which every device computes alike (`sharding`).
    """
    if not samples:
        return lambda params: ()
    vocabulary = rows.vocabulary
    head = int(vocabulary.cls is not None)
    tokens = np.full((len(samples), rows.length), vocabulary.pad, np.int32)
    segments = np.zeros_like(tokens)
    for row, sample in enumerate(samples):
        framed = [*([vocabulary.cls] * head), *sample.ids, *([vocabulary.sep] * (vocabulary.sep is not None))]
        tokens[row, : len(framed)], segments[row, : len(framed)] = framed, 1
        tokens[row, head + sample.at] = vocabulary.mask
    positions = np.broadcast_to(np.arange(rows.length, dtype=np.int32), tokens.shape)
    at = np.array([[head + sample.at] for sample in samples], np.int32)
    right = np.array([sample.ids[sample.at] for sample in samples], np.int32)
    tokens, segments, positions, at, right = jax.device_put((tokens, segments, positions, at, right), sharding)
    batch = (Inputs(tokens, segments, positions), at, right)

    predict = jax.jit(_make_predict(forward, vocabulary.size), out_shardings=sharding)
    compiled = compile_step(predict.lower(params, *batch))

    def answer(params: Params) -> tuple[Answer, ...]:
        best, ids, of_right = jax.device_get(compiled(params, *batch))
        return tuple(
            Answer(
                sample.text,
                sample.right,
                float(of_right[row]),
                tuple((_name(tokenizer, int(i)), float(p)) for i, p in zip(ids[row], best[row], strict=True)),
                sample.split,
            )
            for row, sample in enumerate(samples)
        )

    return answer


@lru_cache
def _make_predict(forward: Forward, size: int) -> Callable[..., tuple[Array, Array, Array]]:
    """Return `predict(params, inputs, at, right)` → the best probabilities, their ids [B, K], and those of `right`."""

    def predict(
        params: Params, inputs: Inputs, at: Int[Array, "B 1"], right: Int[Array, " B"]
    ) -> tuple[Array, Array, Array]:
        probabilities = jax.nn.softmax(forward(params, inputs, at)[:, 0, :size].astype(jnp.float32))
        return *jax.lax.top_k(probabilities, TOP_K), jnp.take_along_axis(probabilities, right[:, None], 1)[:, 0]

    return predict


def _name(tokenizer: Tokenizer, id: int) -> str:
    """Return a token's text, without the marks that tokenizers use for a space."""
    return tokenizer.decode([id], skip_special_tokens=False).strip() or tokenizer.id_to_token(id) or f"id {id}"


def to_json(answers: Sequence[Answer]) -> list[Json]:
    """Return the answers as `samples.jsonl` holds them."""
    return [
        {
            "text": answer.text,
            "split": list(answer.split),
            "right": answer.right,
            "probability": answer.probability,
            "candidates": [{"token": word, "probability": p} for word, p in answer.candidates],
        }
        for answer in answers
    ]
