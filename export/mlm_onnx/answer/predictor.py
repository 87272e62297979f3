"""Answers masked queries from a bundle with numpy, onnxruntime and tokenizers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from mlm_onnx.answer.engine import Engine, Row, default_threads, log_softmax, top
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.reader import Reader, Text, check_utf8
from mlm_onnx.bundle.layout import QueryError
from mlm_onnx.bundle.read import Bundle, open_bundle

SCORED_AT_ONCE = 256
ANSWER_CHARACTERS = 1 << 28
"""Of all the filled-in sentences of one answer."""
JOINT_MASKS = 16
"""Masks of a text that are filled jointly or explained."""
BEAM, WIDEST_BEAM = 8, 64
Answer = dict[str, Any]


class FillMask:
    """`FillMask("BUNDLE")("text with [MASK]", top_k=5)` → {"text", "masks": [{"position", "start", …}]}.

    Threads may share one; a process forked after loading opens its own session at its first query. In a text that is
    longer than the model's window, each mask is answered through a window around it, which its "window" names.

    Args:
        path: a bundle's folder, or what `open_bundle` made of it.
        threads: to compute with (default: the cores, up to four). One text takes all of them where that is faster, a
            small model's only one; several texts are answered side by side.

    Raises:
        BundleError: when the folder is no sound bundle.
    """

    def __init__(self, path: str | os.PathLike[str] | Bundle, threads: int | None = None) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise QueryError(f"threads must be at least 1, not {threads!r}")
        self.bundle = path if isinstance(path, Bundle) else open_bundle(path, full=False, ahead=True)
        self._engine = Engine(self.bundle, threads or default_threads())
        try:
            self._reader = Reader(self.bundle)
        finally:
            self._engine.wait()
        self._pieces = Pieces(self._reader.tokenizer)
        self._never = np.array(sorted(set(self.bundle.special.never)), np.int64)

    def __reduce__(self) -> tuple[type[FillMask], tuple[str, int]]:
        """Pickled as where it came from, so that a pool of processes can be given one."""
        return FillMask, (str(self.bundle.path.absolute()), self._engine.threads)

    @property
    def mask_token(self) -> str:
        """What stands for a missing word in a text."""
        return self.bundle.special.mask

    # ---- questions -------------------------------------------------------------------------------

    @overload
    def __call__(
        self,
        text: str,
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        first_piece: bool = False,
    ) -> Answer: ...
    @overload
    def __call__(
        self,
        text: Sequence[str],
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        first_piece: bool = False,
    ) -> list[Answer]: ...
    def __call__(self, text, top_k=None, targets=None, *, joint=False, first_piece=False):
        """The likeliest tokens at each mask of a text, or of each of several texts.

        Args:
            top_k: how many; 5 when not given, or all of the targets.
            targets: consider only these words; probabilities are still over the whole vocabulary, and each candidate
                gains its "rank" among all tokens, 1 being the likeliest.
            joint: also fill all masks together, by a beam over fill orders, re-scored after each filled mask. The
                answer gains "pseudo_joint": [{"tokens", "ids", "order", "logprob", "text"}], as `mlm_onnx.joint` says.
            first_piece: a target that is not one token stands for its first piece; the candidate says so in
                "first_piece_of", a list of such words.

        Raises:
            QueryError: when a text holds no mask, …; the texts are all checked before any is answered.
        """
        texts = self._texts(text)
        wanted = None if targets is None else self._target_ids(targets, first_piece)
        every = self.bundle.vocab_size - len(self._never)
        choices = every if wanted is None else len(wanted)
        k = min(self._check_top_k(top_k, every), choices)
        k = choices if wanted is not None and top_k is None else k
        queries = self._read(texts, self._reader.masked)
        for query in queries:
            self._check_size(query, k, joint)
        masks: list[list[Answer]] = [[{}] * len(query.at) for query in queries]
        for which, indices, logprobs in self._ask([(query, query.at) for query in queries]):
            for index, row in zip(indices, logprobs, strict=True):
                masks[which][index] = self._mask(queries[which], index, row, k, wanted)
        answers = [{"text": query.text, "masks": found} for query, found in zip(queries, masks, strict=True)]
        if joint:
            for query, answer in zip(queries, answers, strict=True):
                answer["pseudo_joint"] = self._joint(query, k, wanted)
        return answers[0] if isinstance(text, str) else answers

    @overload
    def score(self, text: str) -> Answer: ...
    @overload
    def score(self, text: Sequence[str]) -> list[Answer]: ...
    def score(self, text):
        """Pseudo-log-likelihood (Salazar et al. 2020): the sum of ln p(token | all the others), each hidden in turn.

        In a text longer than the model's window, "the others" are those in a window around the token.

        Returns:
            {"text", "score", "perplexity", "tokens": [{"token", "logprob"}]}; special and unknown tokens do not count.
        """
        answers = [self._score(each) for each in self._read(self._texts(text), self._whole)]
        return answers[0] if isinstance(text, str) else answers

    @overload
    def explain(self, text: str, target: str | None = None, *, first_piece: bool = False) -> Answer: ...
    @overload
    def explain(self, text: Sequence[str], target: str | None = None, *, first_piece: bool = False) -> list[Answer]: ...
    def explain(self, text, target=None, *, first_piece=False):
        """Which words the answer at each mask hangs on: every other word is masked in turn, and the mask asked again.

        Args:
            target: explain this word instead of the likeliest.

        Returns:
            {"text", "masks": [{"position", "start", "end", "token", "id", "probability", "words": [{"word", "start",
            "end", "probability", "effect", "instead"}]}]}: probability of the token without the word, effect =
            ln p(token) - ln p(token without the word), so that what speaks for the token is positive, and the likeliest
            token without the word.
        """
        texts = self._texts(text)
        wanted = None if target is None else self._target_ids([target], first_piece)
        queries = self._read(texts, self._reader.masked)
        for query in queries:
            self._check_size(query, 1, True)
        answers = [self._explain(query, wanted) for query in queries]
        return answers[0] if isinstance(text, str) else answers

    def embed(self, text: str | Sequence[str]) -> np.ndarray:
        """What the model makes of a whole text: the mean of the last hidden states over its tokens, not normalised.

        Special tokens count, since that is what mean pooling is elsewhere: sentence-transformers makes the same vector
        of the same model. A text longer than the model's window is cut into windows of nearly the same length, one
        after the other, and the mean is over the tokens of all of them.

        Returns:
            [D] of a text, [N, D] of several, in float32.
        """
        texts = self._texts(text)
        read = self._read(texts, self._reader.encode)
        parts = [(which, ids) for which, each in enumerate(read) for ids in self._reader.parts(each)]
        sums = np.zeros((len(texts), self._engine.embedding_width()), np.float32)
        tokens = np.zeros((len(texts), 1), np.float32)
        for index, mean in self._engine.embeddings([ids for _, ids in parts]):
            which, ids = parts[index]
            sums[which] += mean * len(ids)
            tokens[which] += len(ids)
        found = sums / tokens
        return found[0] if isinstance(text, str) else found

    # ---- from questions to answers ---------------------------------------------------------------

    def _ask(self, asked: Sequence[tuple[Text, np.ndarray]]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """`mlm_onnx.joint.Ask`, through windows where a text is long."""
        most = self._engine.positions_a_row()
        rows = [(which, *row) for which, (text, at) in enumerate(asked) for row in self._reader.rows(text, at, most)]
        for index, logits in self._engine.logits([row for _, _, row in rows]):
            yield rows[index][0], rows[index][1], log_softmax(logits)

    def _whole(self, text: str) -> Text:
        read = self._reader.encode(text)
        if (read.ids == self.bundle.special.mask_id).any():
            raise QueryError(f"a text to score is whole: it may not hold {self.mask_token}")
        if np.isin(read.ids, self._never).all():
            raise QueryError("none of the text's words are in the model's vocabulary: nothing to score")
        return read

    def _score(self, read: Text) -> Answer:
        hidden = self.bundle.special.mask_id
        counted = np.flatnonzero(~np.isin(read.ids, self._never))
        logprobs = np.zeros(len(counted))
        for start in range(0, len(counted), SCORED_AT_ONCE):
            rows = []
            for place in counted[start : start + SCORED_AT_ONCE]:
                whole = self._reader.row(read, int(place))
                ids = whole.ids.copy()
                ids[whole.at] = hidden
                rows.append(Row(ids, whole.at))
            for index, logits in self._engine.logits(rows):
                logprobs[start + index] = log_softmax(logits[0])[read.ids[counted[start + index]]]
        tokens = [
            {"token": self._pieces.shown(int(read.ids[place])), "logprob": float(logprob)}
            for place, logprob in zip(counted, logprobs, strict=True)
        ]
        total = float(logprobs.sum())
        perplexity = math.exp(min(-total / len(counted), 700))  # the largest that a float holds
        return {"text": read.text, "score": total, "perplexity": perplexity, "tokens": tokens}

    def _mask(
        self, query: Text, mask: int, logprobs: np.ndarray, k: int, wanted: Mapping[int, list[str]] | None
    ) -> Answer:
        (start, end), candidates = query.spans[mask], []
        for id in self._best(logprobs, k, wanted):
            filled = self._pieces.fill(query.text, start, end, int(id))
            candidate = {"token": self._pieces.shown(int(id)), "id": int(id), "probability": math.exp(logprobs[id])}
            if wanted is not None:
                candidate["rank"] = 1 + int((np.delete(logprobs, self._never) > logprobs[id]).sum())
            candidates.append({**candidate, **self._said(int(id), wanted), "text": filled})
        return {**self._where(query, mask), "candidates": candidates}

    def _where(self, query: Text, mask: int) -> Answer:
        start, end = query.spans[mask]
        where = {"position": len(query.text[: start + 1].split()) - 1, "start": start, "end": end}
        if self._reader.is_long(query):
            first, last = self._reader.seen(query, int(query.at[mask]))
            where["window"] = {"start": first, "end": last}
        return where

    def _best(self, logprobs: np.ndarray, k: int, wanted: Mapping[int, list[str]] | None) -> np.ndarray:
        """Ids of the likeliest answers."""
        if wanted is None:
            ranked = logprobs.copy()
            ranked[self._never] = -np.inf
            return top(ranked, min(k, len(ranked) - len(self._never)))
        ids = np.array(list(wanted), np.int64)
        return ids[top(logprobs[ids], k)]

    def _joint(self, query: Text, k: int, wanted: Mapping[int, list[str]] | None) -> list[Answer]:
        from mlm_onnx.answer.joint import fill_jointly

        found = []
        fillings = fill_jointly(query, self._ask, lambda row, width: self._best(row, width, wanted), max(k, BEAM))
        for filling in fillings[:k]:
            text, ids = query.text, [id for _, id in sorted(filling.ids)]
            for (start, end), id in reversed(list(zip(query.spans, ids, strict=True))):
                text = self._pieces.fill(text, start, end, id)
            tokens, order = [self._pieces.shown(id) for id in ids], [mask for mask, _ in filling.ids]
            found.append({"tokens": tokens, "ids": ids, "order": order, "logprob": filling.logprob, "text": text})
        return found

    def _explain(self, query: Text, wanted: Mapping[int, list[str]] | None) -> Answer:
        from mlm_onnx.answer.explain import occlude, words_of

        masks: list[Answer] = [{}] * len(query.at)
        logprobs, answers = np.zeros(len(query.at)), [0] * len(query.at)
        for _, indices, rows in self._ask([(query, query.at)]):
            for index, row in zip(indices, rows, strict=True):
                answers[index] = int(self._best(row, 1, wanted)[0])
                logprobs[index] = row[answers[index]]
        every = np.arange(len(query.at))
        words = words_of(query)
        for group in every[:, None] if self._reader.is_long(query) else [every]:
            near = words
            if self._reader.is_long(query):
                first, last = self._reader.window(query, int(query.at[group[0]]))
                near = [word for word in words if word.places[-1] >= first and word.places[0] < last]
            chosen = [answers[mask] for mask in group]
            hidden = occlude(query, group, near, chosen, self.bundle.special.mask_id, self._never, self._ask)
            for mask, effects in zip(group, hidden, strict=True):
                masks[mask] = {
                    **self._where(query, mask),
                    "token": self._pieces.shown(answers[mask]),
                    "id": answers[mask],
                    "probability": math.exp(logprobs[mask]),
                    **self._said(answers[mask], wanted),
                    "words": [
                        {
                            "word": query.text[each.word.start : each.word.end],
                            "start": each.word.start,
                            "end": each.word.end,
                            "probability": math.exp(each.logprob),
                            "effect": float(logprobs[mask]) - each.logprob,
                            "instead": self._pieces.shown(each.best),
                        }
                        for each in effects
                    ],
                }
        return {"text": query.text, "masks": masks}

    @staticmethod
    def _said(id: int, wanted: Mapping[int, list[str]] | None) -> Answer:
        return {"first_piece_of": wanted[id]} if wanted and wanted[id] else {}

    # ---- what may be asked -----------------------------------------------------------------------

    def _texts(self, text: str | Sequence[str]) -> list[str]:
        if not isinstance(text, Iterable):
            raise QueryError(f"a text must be a str, or several, not {type(text).__name__}")
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) > self.bundle.limits.max_texts:
            raise QueryError(f"{len(texts)} texts at once; the limit is {self.bundle.limits.max_texts}")
        for each in texts:
            if not isinstance(each, str):
                raise QueryError(f"a text must be a str, not {type(each).__name__}")
        return texts

    @staticmethod
    def _read(texts: Sequence[str], read: Callable[[str], Text]) -> list[Text]:
        """All of them, before any is answered; says which of several is not what it should be."""
        found = []
        for index, text in enumerate(texts):
            try:
                found.append(read(text))
            except QueryError as error:
                which = f"text {index} (from 0): " if len(texts) > 1 else ""
                raise QueryError(f"{which}{error}") from None
        return found

    def _check_top_k(self, top_k: int | None, choices: int) -> int:
        if top_k is None:
            return min(5, choices)
        if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
            raise QueryError(f"top_k must be a whole number of at least 1, not {top_k!r}")
        top_k = int(top_k)
        most = min(choices, self.bundle.limits.max_top_k)
        if top_k > most:
            raise QueryError(f"top_k {top_k} is more than the {most} tokens there are to choose from")
        return top_k

    @staticmethod
    def _check_size(query: Text, k: int, joint: bool) -> None:
        masks = len(query.at)
        if joint and masks > JOINT_MASKS:
            raise QueryError(f"the text holds {masks} masks; jointly or explained, the limit is {JOINT_MASKS}")
        if joint and k > WIDEST_BEAM:
            raise QueryError(f"top_k {k} is more than the {WIDEST_BEAM} that a joint answer may hold")
        if masks * k * len(query.text) > ANSWER_CHARACTERS:
            raise QueryError(
                f"{masks * k} candidates with a text of {len(query.text)} characters each are too much: "
                f"lower top_k or shorten the text"
            )

    def _target_ids(self, targets: Sequence[str], first_piece: bool) -> dict[int, list[str]]:
        """Id → the targets of which it is only the first piece."""
        if not isinstance(targets, Iterable):
            raise QueryError(f"targets must be words, not {type(targets).__name__}")
        words = [targets] if isinstance(targets, str) else list(targets)
        if not words:
            raise QueryError("targets is empty: name at least one word")
        found: dict[int, list[str]] = {}
        for word in words:
            if not isinstance(word, str):
                raise QueryError(f"a target must be a str, not {type(word).__name__}")
            check_utf8(word)
            pieces = self._pieces.of(word)
            known = bool(pieces) and not np.isin(pieces[:1] if first_piece else pieces, self._never).any()
            if not known or (len(pieces) > 1 and not first_piece):
                split = " ".join(self._pieces.shown(id) for id in pieces)
                why = f": it would be split into {split}, of which first_piece takes the first" if known else ""
                raise QueryError(f"target {word[:80]!r} is not one token of this model's vocabulary{why}")
            partly = found.setdefault(pieces[0], [])
            if len(pieces) > 1 and word not in partly:
                partly.append(word)
        return found
