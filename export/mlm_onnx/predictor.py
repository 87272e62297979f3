"""Answers masked queries from a bundle with numpy, onnxruntime and tokenizers alone."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from mlm_onnx.bundle import FAST_GRAPH, TOKENIZER, Bundle, BundleError, open_bundle
from mlm_onnx.pieces import Pieces

TOKENS_A_RUN = 2048
"""Rows of one length run together up to this many tokens: more gain nothing on a CPU."""
LOGITS_A_RUN = 1 << 25
"""… and up to this many logits (128 MB)."""
OTHER_MASKS = re.compile(r"\[MASK\]|<mask>|<\|mask\|>|\[mask\]|<MASK>|<extra_id_0>|_{3,}")
Answer = dict[str, Any]


class QueryError(ValueError):
    """A query that has no answer: one line that says why and what to do."""


@dataclass(frozen=True)
class _Query:
    """A text as the model sees it."""

    text: str
    ids: np.ndarray
    at: np.ndarray
    """Token positions of the masks."""
    spans: tuple[tuple[int, int], ...]
    """Characters of the masks."""


def default_threads() -> int:
    """Up to four of the cores this process may use: a query is too small to feed more."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(4, cores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32, as the model's whole vocabulary sees it."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, the largest first, the smaller index first among equals."""
    if k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= cut)
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:k]


class FillMask:
    """`FillMask("BUNDLE")("text with [MASK]", top_k=5)` → {"text", "masks": [{"position", "start", …}]}.

    Threads may share one; a process forked after loading opens its own session at its first query.

    Raises:
        BundleError: when the folder is no sound bundle.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise QueryError(f"threads must be at least 1, not {threads}")
        self.bundle: Bundle = open_bundle(path)
        self._threads = threads or default_threads()
        self._lock = threading.Lock()
        self._kept: list[ort.InferenceSession] = []  # a parent's session must not be torn down by its child
        self._open_session()
        try:
            self._tokenizer = Tokenizer.from_file(str(self.bundle.file(TOKENIZER)))
        except Exception as error:  # the Rust library raises nothing narrower
            raise BundleError(f"{self.bundle.file(TOKENIZER)} is not a tokenizer: {_first_line(error)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if self._tokenizer.token_to_id(self.mask_token) != self.bundle.special.mask_id:
            raise BundleError(f"{self.bundle.path}: tokenizer and manifest disagree on the mask token")
        self._pieces = Pieces(self._tokenizer)
        self._never = np.array(sorted(set(self.bundle.special.never)), np.int64)

    @property
    def mask_token(self) -> str:
        """What stands for a missing word in a text."""
        return self.bundle.special.mask

    # ---- questions -------------------------------------------------------------------------------

    @overload
    def __call__(self, text: str, top_k: int | None = None, targets: Sequence[str] | None = None) -> Answer: ...
    @overload
    def __call__(
        self, text: Sequence[str], top_k: int | None = None, targets: Sequence[str] | None = None
    ) -> list[Answer]: ...
    def __call__(self, text, top_k=None, targets=None):
        """The likeliest tokens at each mask of a text, or of each of several texts.

        Args:
            top_k: how many; 5 when not given, or all of the targets.
            targets: consider only these words; probabilities are still over the whole vocabulary.

        Raises:
            QueryError: when a text holds no mask, is too long, …; the texts are all checked before any is answered.
        """
        texts = self._texts(text)
        wanted = None if targets is None else self._target_ids(targets)
        choices = self.bundle.vocab_size - len(self._never) if wanted is None else len(wanted)
        k = self._check_top_k(top_k, choices if wanted is None else self.bundle.vocab_size - len(self._never))
        k = min(k if top_k is not None or wanted is None else choices, choices)
        queries = [self._query(each) for each in texts]
        answers: list[Answer] = [{}] * len(queries)
        for index, logits in self._logits(queries):
            answers[index] = self._answer(queries[index], logits, k, wanted)
        return answers[0] if isinstance(text, str) else answers

    @overload
    def score(self, text: str) -> Answer: ...
    @overload
    def score(self, text: Sequence[str]) -> list[Answer]: ...
    def score(self, text):
        """Pseudo-log-likelihood (Salazar et al. 2020): the sum of ln p(token | all the others), each hidden in turn.

        Returns:
            {"text", "score", "perplexity", "tokens": [{"token", "logprob"}]}; special and unknown tokens do not count.
        """
        answers = [self._score(each) for each in self._texts(text)]
        return answers[0] if isinstance(text, str) else answers

    def _score(self, text: str) -> Answer:
        ids, _ = self._encode(text)
        hidden = self.bundle.special.mask_id
        if (ids == hidden).any():
            raise QueryError(f"a text to score is whole: it may not hold {self.mask_token}")
        counted = np.flatnonzero(~np.isin(ids, self._never))
        if not len(counted):
            raise QueryError("none of the text's words are in the model's vocabulary: nothing to score")
        queries = []
        for place in counted:
            row = ids.copy()
            row[place] = hidden
            queries.append(_Query(text, row, np.array([place]), ()))
        logprobs = np.zeros(len(counted))
        for index, logits in self._logits(queries):
            logprobs[index] = log_softmax(logits[0])[ids[counted[index]]]
        tokens = [
            {"token": self._pieces.shown(int(ids[place])), "logprob": float(logprob)}
            for place, logprob in zip(counted, logprobs, strict=True)
        ]
        total = float(logprobs.sum())
        return {"text": text, "score": total, "perplexity": math.exp(-total / len(counted)), "tokens": tokens}

    # ---- from text to tokens ---------------------------------------------------------------------

    def _texts(self, text: str | Sequence[str]) -> list[str]:
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) > self.bundle.limits.max_texts:
            raise QueryError(f"{len(texts)} texts at once; the limit is {self.bundle.limits.max_texts}")
        for each in texts:
            if not isinstance(each, str):
                raise QueryError(f"a text must be a str, not {type(each).__name__}")
        return texts

    def _encode(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Ids and character offsets of a text that is neither empty nor too long."""
        limits = self.bundle.limits
        if not text.strip():
            raise QueryError("the text is empty")
        if len(text) > limits.max_characters:
            raise QueryError(f"the text has {len(text)} characters; the limit is {limits.max_characters}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise QueryError("the text is not valid UTF-8") from None
        encoding = self._tokenizer.encode(text)
        if len(encoding.ids) > limits.max_length:
            raise QueryError(
                f"the text has {len(encoding.ids)} tokens; the model's limit is {limits.max_length}: shorten it"
            )
        return np.array(encoding.ids, np.int64), encoding.offsets

    def _query(self, text: str) -> _Query:
        mask = self.mask_token
        if text.strip() and len(text) <= self.bundle.limits.max_characters:
            if mask not in text:
                other = OTHER_MASKS.search(text)
                said = f" (it holds {other.group()}, which is not this model's)" if other else ""
                raise QueryError(f"the text holds no mask{said}: write {mask} where a word is missing")
            if not text.replace(mask, "").strip():
                raise QueryError(f"the text holds nothing but {mask}: give the words around it")
        ids, offsets = self._encode(text)
        at = np.flatnonzero(ids == self.bundle.special.mask_id)
        if not len(at):
            raise QueryError(f"the tokenizer does not see {mask} in the text: set it apart by spaces")
        starts = [text.index(mask, offsets[place][0]) for place in at]
        return _Query(text, ids, at, tuple((start, start + len(mask)) for start in starts))

    def _check_top_k(self, top_k: int | None, choices: int) -> int:
        if top_k is None:
            return min(5, choices)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise QueryError(f"top_k must be at least 1, not {top_k!r}")
        most = min(choices, self.bundle.limits.max_top_k)
        if top_k > most:
            raise QueryError(f"top_k {top_k} is more than the {most} tokens there are to choose from")
        return top_k

    def _target_ids(self, targets: Sequence[str]) -> np.ndarray:
        """One id a target, without repetition."""
        words = [targets] if isinstance(targets, str) else list(targets)
        if not words:
            raise QueryError("targets is empty: name at least one word")
        ids = []
        for word in words:
            pieces = self._pieces.of(word)
            if len(pieces) != 1 or np.isin(pieces, self._never).any():
                split = " ".join(self._pieces.shown(id) for id in pieces)
                why = f": it would be split into {split}" if len(pieces) > 1 else ""
                raise QueryError(f"target {word!r} is not one token of this model's vocabulary{why}")
            ids.append(pieces[0])
        return np.array(list(dict.fromkeys(ids)), np.int64)

    # ---- from tokens to answers ------------------------------------------------------------------

    def _logits(self, queries: Sequence[_Query]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, logits [P, V]) of each query; rows of one length and number of masks run together, unpadded."""
        alike: dict[tuple[int, int], list[int]] = {}
        for index, query in enumerate(queries):
            alike.setdefault((len(query.ids), len(query.at)), []).append(index)
        for (length, masks), members in alike.items():
            rows = max(1, min(TOKENS_A_RUN // length, LOGITS_A_RUN // (masks * self.bundle.vocab_size)))
            if self.bundle.manifest.get("dtype") == "int8":
                rows = 1  # the scales of int8 activations span a run: a text alone is answered alike in any company
            for start in range(0, len(members), rows):
                chosen = members[start : start + rows]
                ids = np.stack([queries[index].ids for index in chosen])
                at = np.stack([queries[index].at for index in chosen])
                yield from zip(chosen, self._run(ids, at), strict=True)

    def _run(self, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Logits [B, P, V] at positions [B, P] of rows [B, S]."""
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._open_session()
        return self._session.run(None, {"input_ids": ids, "positions": at})[0]

    def _open_session(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.bundle.file(FAST_GRAPH)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class but this
            raise BundleError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from None
        found = {port.name for port in (*session.get_inputs(), *session.get_outputs())}
        if found != {"input_ids", "positions", "logits"}:
            raise BundleError(f"{path} is no fill-mask graph: its inputs and outputs are {', '.join(sorted(found))}")
        self._kept.append(session)
        self._session, self._pid = session, os.getpid()

    def _answer(self, query: _Query, logits: np.ndarray, k: int, wanted: np.ndarray | None) -> Answer:
        probabilities = np.exp(log_softmax(logits))
        masks = []
        for (start, end), row in zip(query.spans, probabilities, strict=True):
            if wanted is None:
                ranked = row.copy()
                ranked[self._never] = -1.0
                ids = top(ranked, k)
            else:
                ids = wanted[top(row[wanted], k)]
            masks.append(
                {
                    "position": len(query.text[: start + 1].split()) - 1,
                    "start": start,
                    "end": end,
                    "candidates": [self._candidate(query.text, start, end, int(id), float(row[id])) for id in ids],
                }
            )
        return {"text": query.text, "masks": masks}

    def _candidate(self, text: str, start: int, end: int, id: int, probability: float) -> Mapping[str, Any]:
        filled = self._pieces.fill(text, start, end, id)
        return {"token": self._pieces.shown(id), "id": id, "probability": probability, "text": filled}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
