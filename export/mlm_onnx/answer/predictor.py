"""`FillMask`: answers queries from a bundle with numpy, onnxruntime and tokenizers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar, overload

import numpy as np

from mlm_onnx.answer.answers import Answers, ExplainedMask, Explanation, Filled, Score
from mlm_onnx.answer.engine import Engine, checked, log_softmax
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.queries import (
    Choices,
    Ranked,
    check_scored,
    check_size,
    choices_of,
    how_many,
    listed,
    read_all,
    scored_positions,
)
from mlm_onnx.answer.reader import Reader, Text
from mlm_onnx.answer.words import words_among
from mlm_onnx.bundle.layout import FILL
from mlm_onnx.bundle.read import Bundle, opened

SCORED_AT_ONCE = 2048
BEAM = 8
Result = TypeVar("Result")


class FillMask:
    """`FillMask("BUNDLE")("text with [MASK]", top_k=5)` → {"text", "masks": [{"position", "start", …}]}.

    Threads may share one; a process forked after loading opens its own session at its first query. In a text that is
    longer than the model's window, each mask is answered from a window around it, given as its "window".

    Args:
        path: a bundle's folder, or a bundle that `open_bundle` returned.
        threads: how many to compute with (default: the number of cores, up to four). One text uses all of them if the
            model is large enough to gain from it, else one; several texts are answered in parallel.

    Attributes:
        bundle: the bundle that answers.
        reader: tokenises texts, within the bundle's limits.

    Raises:
        BundleError: the folder is not a sound bundle.
    """

    def __init__(self, path: str | os.PathLike[str] | Bundle, threads: int | None = None) -> None:
        self.bundle = opened(path, FILL)
        self._engine = Engine(self.bundle, checked(threads), self.bundle.vocab_size)
        try:
            self.reader = Reader(self.bundle)
        finally:
            self._engine.wait()
        self._pieces = self.reader.rust(Pieces, self.reader.tokenizer)
        self._answers = Answers(self.reader, self._pieces)
        self._excluded = np.array(sorted(set(self.bundle.special.excluded)), np.int64)

    def __reduce__(self) -> tuple[type[FillMask], tuple[str, int]]:
        """Pickle the path and the number of threads, so that a predictor can be passed to other processes."""
        return FillMask, (str(self.bundle.path.absolute()), self._engine.threads)

    @property
    def mask_token(self) -> str:
        """The token that stands for a missing word in a text."""
        return self.bundle.special.mask

    # ---- queries ---------------------------------------------------------------------------------

    # a str is also a Sequence[str], so the overloads overlap; the first that matches wins
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self,
        text: str,
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        first_piece: bool = False,
    ) -> Filled: ...
    @overload
    def __call__(
        self,
        text: Sequence[str],
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        first_piece: bool = False,
    ) -> list[Filled]: ...
    def __call__(
        self,
        text: str | Sequence[str],
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
        *,
        joint: bool = False,
        first_piece: bool = False,
    ) -> Filled | list[Filled]:
        """Return the likeliest tokens at each mask of a text, or of each of several texts.

        Args:
            top_k: how many; by default 5, or all of the targets.
            targets: consider only these words, as the tokenizer writes them where the mask stands; a word with a space
                before it stands for the piece that brings its own. Probabilities are still over the whole vocabulary,
                and each candidate gains its "rank" among all tokens, 1 being the likeliest.
            joint: also fill all masks together, by a beam over fill orders, re-scored after each filled mask. The
                answer gains "pseudo_joint": [{"tokens", "ids", "order", "logprob", "text"}] (`mlm_onnx.answer.joint`).
            first_piece: replace a target that is not one token by its first piece; the candidate lists such words in
                "first_piece_of".

        Raises:
            QueryError: a text cannot be answered, for instance because it has no mask. All texts are checked before any
                is answered.
        """
        choices = self._choices(targets, first_piece)
        how_many(top_k, choices(" "), self.bundle.vocab_size, self.bundle.limits)
        queries = read_all(listed(text, self.bundle.limits), self.reader.masked)
        allowed = [[choices(query.before(mask)) for mask in range(len(query.at))] for query in queries]
        k = max(
            (
                how_many(top_k, each, self.bundle.vocab_size, self.bundle.limits)
                for of_query in allowed
                for each in of_query
            ),
            default=1,
        )
        for query in queries:
            check_size(query, k, joint)

        def ranked(text: int, mask: int, logprobs: np.ndarray) -> list[Ranked]:
            return allowed[text][mask].ranked(logprobs, k)

        answers: list[Filled] = []
        asked = self._ask([(query, query.at) for query in queries], ranked)
        for query, per_mask, of_query in zip(queries, asked, allowed, strict=True):
            masks = [self._answers.mask(query, mask, each, of_query[mask]) for mask, each in enumerate(per_mask)]
            answers.append({"text": query.text, "masks": masks})
        if joint:
            from mlm_onnx.answer.joint import fill_jointly

            for query, answer, of_query in zip(queries, answers, allowed, strict=True):
                fillings = fill_jointly(query, self._ask, [each.best for each in of_query], max(k, BEAM))
                answer["pseudo_joint"] = [self._answers.joint(query, filling) for filling in fillings[:k]]
        return answers[0] if isinstance(text, str) else answers

    # the overloads overlap as above
    @overload
    def score(  # pyright: ignore[reportOverlappingOverload]
        self, text: str, *, within_word: bool = False
    ) -> Score: ...
    @overload
    def score(self, text: Sequence[str], *, within_word: bool = False) -> list[Score]: ...
    def score(self, text: str | Sequence[str], *, within_word: bool = False) -> Score | list[Score]:
        """Return pseudo-log-likelihoods (Salazar et al. 2020): the sum of ln p(token | others), each hidden in turn.

        In a text longer than the model's window, "others" are those in a window around the token.

        Args:
            within_word: hide the later tokens of the same word, too, because the pieces of a word give each other away
                (PLL-word-l2r, Kauf & Ivanova 2023). A word is what whole-word masking takes for one: a run of letters,
                digits, marks and underscores of up to 40 characters, found by the offsets of the tokens.

        Returns:
            {"text", "score", "perplexity", "unknown", "tokens": [{"token", "logprob"}]}; special tokens do not count.
            Unknown ones do, with the probability of the unknown token, and "unknown" is how many there are. It also
            counts words, or parts of one, for which the tokenizer has no token at all.
        """
        special = self.bundle.special
        texts = listed(text, self.bundle.limits)
        read = read_all(texts, lambda each: check_scored(self.reader.encode(each), special))
        counted = [scored_positions(each, special) for each in read]
        logprobs = self._hidden(read, counted, within_word)
        answers = [self._answers.score(*each) for each in zip(read, counted, logprobs, strict=True)]
        return answers[0] if isinstance(text, str) else answers

    # the overloads overlap as above
    @overload
    def explain(  # pyright: ignore[reportOverlappingOverload]
        self, text: str, target: str | None = None, *, first_piece: bool = False
    ) -> Explanation: ...
    @overload
    def explain(
        self, text: Sequence[str], target: str | None = None, *, first_piece: bool = False
    ) -> list[Explanation]: ...
    def explain(
        self, text: str | Sequence[str], target: str | None = None, *, first_piece: bool = False
    ) -> Explanation | list[Explanation]:
        """Return which words the answer at each mask depends on, measured by hiding each word in turn and asking again.

        Args:
            target: explain this word instead of the likeliest.

        Returns:
            {"text", "masks": [{"position", "start", "end", "token", "id", "probability", "words": [{"word", "start",
            "end", "probability", "effect", "instead"}]}]}. Of a word, "probability" is the token's without that word,
            "effect" is ln p(token) - ln p(token without the word), positive for words that support the token, and
            "instead" is the likeliest token without the word.
        """
        choices = self._choices(None if target is None else [target], first_piece)
        choices(" ")
        queries = read_all(listed(text, self.bundle.limits), self.reader.masked)
        for query in queries:
            check_size(query, 1, joint=True)
        answers = [self._explain(query, choices) for query in queries]
        return answers[0] if isinstance(text, str) else answers

    def embed(self, text: str | Sequence[str]) -> np.ndarray:
        """Return the mean of the last hidden states over the tokens of a whole text, not normalised.

        Special tokens count, as is usual in mean pooling: sentence-transformers returns the same vector for the same
        model. A text longer than the model's window is cut into consecutive windows of nearly equal length, and the
        mean is over the tokens of all of them.

        Returns:
            [D] for one text, [N, D] for several, in float32.
        """
        read = read_all(listed(text, self.bundle.limits), self.reader.encode)
        parts = [(which, ids) for which, each in enumerate(read) for ids in self.reader.parts(each)]
        sums = np.zeros((len(read), self._engine.embedding_width()), np.float32)
        tokens = np.zeros((len(read), 1), np.float32)
        for (which, ids), mean in zip(parts, self._engine.embeddings([ids for _, ids in parts]), strict=True):
            sums[which] += mean * len(ids)
            tokens[which] += len(ids)
        means = sums / tokens
        return means[0] if isinstance(text, str) else means

    def once(self) -> None:
        """Answer one short text."""
        self(f"a {self.mask_token}", top_k=1)

    # ---- from queries to answers -----------------------------------------------------------------

    def _choices(self, targets: Sequence[str] | None, first_piece: bool) -> Callable[[str], Choices]:
        """Return a function from the character before a mask to what may be an answer there."""
        targets = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, str) else targets

        @cache
        def choices(before: str) -> Choices:
            return choices_of(targets, first_piece, self._pieces, self._excluded, before)

        return choices

    def _ask(
        self, asked: Sequence[tuple[Text, np.ndarray]], reduce: Callable[[int, int, np.ndarray], Result]
    ) -> list[list[Result]]:
        """Implement `mlm_onnx.answer.joint.Ask`, with windows over long texts."""
        most = self._engine.positions_a_row()
        rows = [(which, *row) for which, (text, at) in enumerate(asked) for row in self.reader.rows(text, at, most)]

        def reduce_row(index: int, logits: np.ndarray) -> list[Result]:
            which, indices, _ = rows[index]
            return [reduce(which, int(at), row) for at, row in zip(indices, log_softmax(logits), strict=True)]

        by_text: list[list[Result]] = [[] for _ in asked]
        for (which, *_), results in zip(rows, self._engine.map([row for *_, row in rows], reduce_row), strict=True):
            by_text[which] += results
        return by_text

    def _hidden(self, texts: Sequence[Text], counted: Sequence[np.ndarray], within_word: bool) -> list[np.ndarray]:
        """Return ln p of the tokens at the given positions of each text, each hidden in turn."""
        copies = [
            (text, int(position), int(until))
            for text, positions in zip(texts, counted, strict=True)
            for position, until in zip(positions, self._ends(text, positions, within_word), strict=True)
        ]
        logprobs: list[float] = []
        for start in range(0, len(copies), SCORED_AT_ONCE):
            chosen = copies[start : start + SCORED_AT_ONCE]

            def logprob(index: int, logits: np.ndarray, chosen: Sequence[tuple[Text, int, int]] = chosen) -> float:
                text, position, _ = chosen[index]
                return float(log_softmax(logits[0])[text.ids[position]])

            logprobs += self._engine.map([self.reader.hidden(*copy) for copy in chosen], logprob)
        return np.split(np.array(logprobs), np.cumsum([len(positions) for positions in counted])[:-1])

    @staticmethod
    def _ends(text: Text, positions: np.ndarray, within_word: bool) -> np.ndarray:
        """Return where what is hidden with the token at each position ends: after it, or after its word."""
        ends = np.arange(1, len(text.ids) + 1)
        before, after = text.frame
        inner = range(before, len(text.ids) - after)
        for word in words_among(text.text, text.offsets, inner) if within_word else ():
            ends[word] = word[-1] + 1
        return ends[positions]

    def _explain(self, query: Text, choices: Callable[[str], Choices]) -> Explanation:
        from mlm_onnx.answer.explain import asked_together, occlude

        allowed = [choices(query.before(mask)) for mask in range(len(query.at))]

        def likeliest(_text: int, mask: int, logprobs: np.ndarray) -> Ranked:
            id = int(allowed[mask].best(logprobs, 1)[0])
            return Ranked(id, float(logprobs[id]))

        (answers,) = self._ask([(query, query.at)], likeliest)
        masks: list[ExplainedMask] = []
        for group, words in asked_together(query, self.reader):
            chosen = [answers[mask].id for mask in group]
            hidden = occlude(query, group, words, chosen, self.bundle.special.mask_id, self._excluded, self._ask)
            for mask, effects in zip(group.tolist(), hidden, strict=True):
                masks.append(self._answers.explained(query, mask, answers[mask], effects, allowed[mask]))
        return {"text": query.text, "masks": masks}
