"""Measure what a page states about a sentence with some words hidden. No wording and no interface here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.answers import Candidate, ExplainedMask, Mask
from mlm_onnx.answer.explain import words_of
from mlm_onnx.answer.predictor import FillMask
from mlm_onnx.answer.queries import JOINT_MASKS
from mlm_onnx.bundle.layout import QueryError

MOST_WORDS = 1000
"""Most words in a sentence on the page."""
DEPENDS = 0.1
"""Least effect, in natural logarithms, that counts as dependence: the probability changes by a tenth."""
TOGETHER = 2
"""Number of the strongest words that are also hidden together."""
LOOKED_AT = 100
"""Number of candidates among which an answer is looked up when more words are hidden."""


@dataclass(frozen=True)
class Word:
    """A word of a sentence; where no spaces are written, a token of the model."""

    text: str
    start: int
    end: int
    ids: tuple[int, ...]
    """Token ids."""
    known: bool
    """False if the model reads an unknown token here."""
    mask: bool = False
    """Whether the text itself has a mask here."""


@dataclass(frozen=True)
class Asked:
    """A sentence with words hidden, and what the model answers there."""

    text: str
    """The full sentence, including the hidden words."""
    words: tuple[Word, ...]
    positions: tuple[int, ...]
    """Indices of the masks among the words, in order."""
    masked: str
    """What the model reads."""
    masks: tuple[Mask, ...]
    """`FillMask`'s answer for each of `positions`."""


@dataclass(frozen=True)
class Influence:
    """What happens at a mask when one more word is hidden."""

    word: str
    position: int
    """Index among the words of the sentence."""
    effect: float
    """ln p(answer) - ln p(answer without the word)."""
    probability: float
    """The answer's probability without the word."""
    instead: str
    """The likeliest answer without the word."""


@dataclass(frozen=True)
class Together:
    """What happens at a mask when the words it depends on most are all hidden."""

    words: tuple[str, ...]
    probability: float
    """The answer's probability; an upper bound if it is not among the first candidates."""
    exact: bool
    instead: str
    instead_probability: float


@dataclass(frozen=True)
class Why:
    """Everything measured about the answer at one mask."""

    position: int
    token: str
    probability: float
    runner_up: str | None
    runner_up_probability: float
    original: Word | None
    """The hidden word; None if the text itself has the mask."""
    rank: int | None
    """Rank of the original, if it is one token."""
    original_probability: float
    choices: int
    """Number of tokens that could be an answer."""
    influences: tuple[Influence, ...]
    together: Together | None
    window: tuple[int, int] | None
    """Range of characters that were read, if the text is longer than the model's window."""


class Facts:
    """Measurements with one bundle's predictor, which threads may share."""

    def __init__(self, fill: FillMask) -> None:
        self.fill = fill
        bundle = fill.bundle
        self.choices = bundle.vocab_size - len(set(bundle.special.excluded))
        self.most_shown = min(20, self.choices, bundle.limits.max_top_k)
        unknown = bundle.manifest["tokens"].get("unk", {})
        self._unknown = unknown.get("id")

    def words(self, text: str) -> tuple[Word, ...]:
        """Return the words of a sentence, masks among them.

        Raises:
            QueryError: the sentence is empty or too long, or has nothing but masks.
        """
        reader = self.fill.reader
        read = reader.masked(text) if self.fill.mask_token in text else reader.encode(text)
        words = [
            Word(
                text[word.start : word.end],
                word.start,
                word.end,
                tuple(read.ids[word.positions].tolist()),
                not (read.ids[word.positions] == self._unknown).any(),
            )
            for word in words_of(read)
        ]
        words += [
            Word(text[start:end], start, end, (self.fill.bundle.special.mask_id,), True, mask=True)
            for start, end in read.spans
        ]
        if len(words) > MOST_WORDS:
            raise QueryError(f"the sentence has {len(words)} words; this page takes up to {MOST_WORDS}: shorten it")
        return tuple(sorted(words, key=lambda word: word.start))

    def hide(self, text: str, words: Sequence[Word], positions: Sequence[int]) -> str:
        """Return the text with some of its words replaced by masks."""
        for position in sorted(positions, reverse=True):
            if not words[position].mask:
                text = text[: words[position].start] + self.fill.mask_token + text[words[position].end :]
        return text

    def ask(self, text: str, words: tuple[Word, ...], hidden: Sequence[int], top_k: int) -> Asked:
        """Ask the model with some of the text's words hidden; masks in the text itself are asked too.

        Raises:
            QueryError: nothing is hidden, or everything is, or the text cannot be answered.
        """
        chosen = {position for position in hidden if 0 <= position < len(words)}
        positions = tuple(position for position, word in enumerate(words) if word.mask or position in chosen)
        if not positions:
            raise QueryError("no word is hidden")
        if len(positions) == len(words):
            raise QueryError("every word is hidden: leave at least one to go by")
        masked = self.hide(text, words, positions)
        answer = self.fill(masked, top_k=min(top_k, self.most_shown))
        if len(answer["masks"]) != len(positions):
            raise QueryError(f"the tokenizer does not recognise each {self.fill.mask_token}: separate words by spaces")
        return Asked(text, words, positions, masked, tuple(answer["masks"]))

    def why(self, asked: Asked) -> tuple[Why, ...]:
        """Measure what each answer depends on; `asked` needs at least two candidates per mask, for the runner-up.

        Raises:
            QueryError: there are too many masks to explain.
        """
        if len(asked.positions) > JOINT_MASKS:
            raise QueryError(f"{len(asked.positions)} words are hidden; answers are explained for up to {JOINT_MASKS}")
        explained = self.fill.explain(asked.masked)["masks"]
        return tuple(self._why(asked, index, explained[index]) for index in range(len(asked.positions)))

    def _why(self, asked: Asked, index: int, explained: ExplainedMask) -> Why:
        position, mask = asked.positions[index], asked.masks[index]
        first, *rest = mask["candidates"]
        original = asked.words[position]
        rank, probability = (None, 0.0) if original.mask else self._original(asked, index, original)
        influences = self._influences(asked, explained)
        window = mask.get("window")
        return Why(
            position=position,
            token=first["token"],
            probability=first["probability"],
            runner_up=rest[0]["token"] if rest else None,
            runner_up_probability=rest[0]["probability"] if rest else 0.0,
            original=None if original.mask else original,
            rank=rank,
            original_probability=probability,
            choices=self.choices,
            influences=influences,
            together=self._together(asked, index, first, influences),
            window=(window["start"], window["end"]) if window else None,
        )

    def _original(self, asked: Asked, index: int, word: Word) -> tuple[int | None, float]:
        """Return rank and probability of the hidden word if it is one token."""
        if len(word.ids) != 1 or not word.known:
            return None, 0.0
        try:
            (candidate,) = self.fill(asked.masked, targets=[word.text])["masks"][index]["candidates"]
        except QueryError:  # alone, it is split differently than in the sentence
            return None, 0.0
        return (candidate.get("rank"), candidate["probability"]) if candidate["id"] == word.ids[0] else (None, 0.0)

    @staticmethod
    def _influences(asked: Asked, explained: ExplainedMask) -> tuple[Influence, ...]:
        """Return the influences in word order; masks shift the words after them between the two texts."""
        visible = [position for position in range(len(asked.words)) if position not in set(asked.positions)]
        shifted = dict(zip(_starts(asked), visible, strict=True))
        return tuple(
            Influence(each["word"], shifted[each["start"]], each["effect"], each["probability"], each["instead"])
            for each in explained["words"]
            if each["start"] in shifted
        )

    def _together(self, asked: Asked, index: int, first: Candidate, influences: Sequence[Influence]) -> Together | None:
        strongest = sorted(influences, key=lambda each: -each.effect)[:TOGETHER]
        strongest = [each for each in strongest if each.effect >= DEPENDS]
        visible = len(asked.words) - len(asked.positions)
        if len(strongest) < TOGETHER or visible <= TOGETHER or len(asked.positions) + TOGETHER > JOINT_MASKS:
            return None
        hidden = sorted({*asked.positions, *(each.position for each in strongest)})
        masked = self.hide(asked.text, asked.words, hidden)
        masks = self.fill(masked, top_k=min(LOOKED_AT, self.choices, self.fill.bundle.limits.max_top_k))["masks"]
        candidates = masks[hidden.index(asked.positions[index])]["candidates"]
        own = next((each["probability"] for each in candidates if each["id"] == first["id"]), None)
        probability = candidates[-1]["probability"] if own is None else own
        words = tuple(each.word for each in sorted(strongest, key=lambda each: each.position))
        return Together(words, probability, own is not None, candidates[0]["token"], candidates[0]["probability"])


def _starts(asked: Asked) -> list[int]:
    """Return where the words that are still visible begin in the masked text."""
    shift, hidden, starts = 0, set(asked.positions), []
    mask_length = asked.masks[0]["end"] - asked.masks[0]["start"]
    for position, word in enumerate(asked.words):
        if position in hidden:
            shift += 0 if word.mask else mask_length - (word.end - word.start)
        else:
            starts.append(word.start + shift)
    return starts


def filled_in(asked: Asked) -> list[tuple[str, bool]]:
    """Return the sentence with each mask's first answer, as (text, whether it is an answer)."""
    parts: list[tuple[str, bool]] = []
    end = len(asked.masked)
    for mask in reversed(asked.masks):
        answer, before, after = (
            mask["candidates"][0]["text"],
            asked.masked[: mask["start"]],
            asked.masked[mask["end"] :],
        )
        # an answer may take one space away on either side
        before = before if answer.startswith(before) else before[:-1]
        after = after if answer.endswith(after) else after[1:]
        token = answer[len(before) : len(answer) - len(after)]
        inner = token.strip() or token
        left, right = token[: token.index(inner)], token[token.index(inner) + len(inner) :]
        parts += [(f"{right}{asked.masked[len(asked.masked) - len(after) : end]}", False), (inner, True), (left, False)]
        end = len(before)
    parts.append((asked.masked[:end], False))
    return [part for part in reversed(parts) if part[0]]


def strength(influences: Sequence[Influence]) -> np.ndarray:
    """Return each word's shade, -1 to 1: the effect, relative to the largest, or to 1 if all are smaller."""
    effects = np.array([each.effect for each in influences])
    return effects / max(1.0, float(np.abs(effects).max(initial=0.0)))
