"""What a page can state about a sentence with some words hidden: measured facts, no text and no interface."""

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
"""Most words of a sentence on a page."""
DEPENDS = 0.1
"""Effect, in natural logarithms, from which an answer depends on a word: its probability changes by a tenth."""
TOGETHER = 2
"""How many words are also hidden at once."""
LOOKED_AT = 100
"""Candidates among which an answer is looked for when more words are hidden."""


@dataclass(frozen=True)
class Word:
    """A word of a sentence, as the model's tokenizer splits texts into words."""

    text: str
    start: int
    end: int
    ids: tuple[int, ...]
    """Its tokens."""
    known: bool
    """False where the model reads an unknown token."""
    mask: bool = False
    """The text itself holds a mask here."""


@dataclass(frozen=True)
class Asked:
    """A sentence with words hidden, and what the model answers there."""

    text: str
    """The sentence with the hidden words in it."""
    words: tuple[Word, ...]
    places: tuple[int, ...]
    """Indices of the masks among the words, in order."""
    masked: str
    """What the model reads."""
    masks: tuple[Mask, ...]
    """`FillMask`'s answer, one for each of `places`."""


@dataclass(frozen=True)
class Influence:
    """What happens at a mask when a word is hidden too."""

    word: str
    place: int
    """Index among the sentence's words."""
    effect: float
    """ln p(answer) - ln p(answer without the word)."""
    probability: float
    """The answer's probability without the word."""
    instead: str
    """The likeliest answer without it."""


@dataclass(frozen=True)
class Together:
    """What happens at a mask when the words it depends on most are all hidden."""

    words: tuple[str, ...]
    probability: float
    """The answer's probability, or the largest it can be where it is not among the first."""
    exact: bool
    instead: str
    instead_probability: float


@dataclass(frozen=True)
class Why:
    """What was measured about the answer at one mask."""

    place: int
    token: str
    probability: float
    runner_up: str | None
    runner_up_probability: float
    original: Word | None
    """The hidden word; None where the text itself holds the mask."""
    rank: int | None
    """Rank of the original, where it is one token."""
    original_probability: float
    choices: int
    """Tokens that could be an answer."""
    influences: tuple[Influence, ...]
    together: Together | None
    window: tuple[int, int] | None
    """Characters that were read, where the text is longer than the model's window."""


class Facts:
    """Measures with one bundle's predictor; threads share it."""

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
            QueryError: the sentence is empty or too long, or holds nothing but masks.
        """
        reader = self.fill.reader
        read = reader.masked(text) if self.fill.mask_token in text else reader.encode(text)
        found = [
            Word(
                text[word.start : word.end],
                word.start,
                word.end,
                tuple(read.ids[word.positions].tolist()),
                not (read.ids[word.positions] == self._unknown).any(),
            )
            for word in words_of(read)
        ]
        found += [
            Word(text[start:end], start, end, (self.fill.bundle.special.mask_id,), True, mask=True)
            for start, end in read.spans
        ]
        if len(found) > MOST_WORDS:
            raise QueryError(f"the sentence has {len(found)} words; this page takes up to {MOST_WORDS}: shorten it")
        return tuple(sorted(found, key=lambda word: word.start))

    def hide(self, text: str, words: Sequence[Word], places: Sequence[int]) -> str:
        """Return the text with masks in place of some of its words."""
        for place in sorted(places, reverse=True):
            if not words[place].mask:
                text = text[: words[place].start] + self.fill.mask_token + text[words[place].end :]
        return text

    def ask(self, text: str, words: tuple[Word, ...], hidden: Sequence[int], top_k: int) -> Asked:
        """Ask the model with some of the text's words hidden; the masks that the text itself holds are asked too.

        Raises:
            QueryError: nothing is hidden, everything is, …
        """
        chosen = {place for place in hidden if 0 <= place < len(words)}
        places = tuple(place for place, word in enumerate(words) if word.mask or place in chosen)
        if not places:
            raise QueryError("no word is hidden")
        if len(places) == len(words):
            raise QueryError("every word is hidden: leave at least one to go by")
        masked = self.hide(text, words, places)
        answer = self.fill(masked, top_k=min(top_k, self.most_shown))
        if len(answer["masks"]) != len(places):
            raise QueryError(f"the tokenizer does not see each {self.fill.mask_token} there: set words apart by spaces")
        return Asked(text, words, places, masked, tuple(answer["masks"]))

    def why(self, asked: Asked) -> tuple[Why, ...]:
        """Measure what each answer depends on; `asked` has at least two candidates a mask, for the runner-up.

        Raises:
            QueryError: there are too many masks to explain.
        """
        if len(asked.places) > JOINT_MASKS:
            raise QueryError(f"{len(asked.places)} words are hidden; answers are explained for up to {JOINT_MASKS}")
        explained = self.fill.explain(asked.masked)["masks"]
        return tuple(self._why(asked, index, explained[index]) for index in range(len(asked.places)))

    def _why(self, asked: Asked, index: int, explained: ExplainedMask) -> Why:
        place, mask = asked.places[index], asked.masks[index]
        first, *others = mask["candidates"]
        original = asked.words[place]
        rank, probability = (None, 0.0) if original.mask else self._original(asked, index, original)
        influences = self._influences(asked, explained)
        window = mask.get("window")
        return Why(
            place=place,
            token=first["token"],
            probability=first["probability"],
            runner_up=others[0]["token"] if others else None,
            runner_up_probability=others[0]["probability"] if others else 0.0,
            original=None if original.mask else original,
            rank=rank,
            original_probability=probability,
            choices=self.choices,
            influences=influences,
            together=self._together(asked, index, first, influences),
            window=(window["start"], window["end"]) if window else None,
        )

    def _original(self, asked: Asked, index: int, word: Word) -> tuple[int | None, float]:
        """Return rank and probability of the word that was hidden, where it is one token."""
        if len(word.ids) != 1 or not word.known:
            return None, 0.0
        try:
            (found,) = self.fill(asked.masked, targets=[word.text])["masks"][index]["candidates"]
        except QueryError:  # alone it is split otherwise than in the sentence
            return None, 0.0
        return (found.get("rank"), found["probability"]) if found["id"] == word.ids[0] else (None, 0.0)

    @staticmethod
    def _influences(asked: Asked, explained: ExplainedMask) -> tuple[Influence, ...]:
        """Return them in the order of the words; in the two texts a word is shifted by the masks before it."""
        visible = [place for place in range(len(asked.words)) if place not in set(asked.places)]
        shifted = dict(zip(_starts(asked), visible, strict=True))
        return tuple(
            Influence(each["word"], shifted[each["start"]], each["effect"], each["probability"], each["instead"])
            for each in explained["words"]
            if each["start"] in shifted
        )

    def _together(self, asked: Asked, index: int, first: Candidate, influences: Sequence[Influence]) -> Together | None:
        strongest = sorted(influences, key=lambda each: -each.effect)[:TOGETHER]
        strongest = [each for each in strongest if each.effect >= DEPENDS]
        visible = len(asked.words) - len(asked.places)
        if len(strongest) < TOGETHER or visible <= TOGETHER or len(asked.places) + TOGETHER > JOINT_MASKS:
            return None
        hidden = sorted({*asked.places, *(each.place for each in strongest)})
        masked = self.hide(asked.text, asked.words, hidden)
        masks = self.fill(masked, top_k=min(LOOKED_AT, self.choices, self.fill.bundle.limits.max_top_k))["masks"]
        candidates = masks[hidden.index(asked.places[index])]["candidates"]
        own = next((each["probability"] for each in candidates if each["id"] == first["id"]), None)
        probability = candidates[-1]["probability"] if own is None else own
        words = tuple(each.word for each in sorted(strongest, key=lambda each: each.place))
        return Together(words, probability, own is not None, candidates[0]["token"], candidates[0]["probability"])


def _starts(asked: Asked) -> list[int]:
    """Return where the words that are still visible begin in the masked text."""
    shift, hidden, starts = 0, set(asked.places), []
    mask_length = asked.masks[0]["end"] - asked.masks[0]["start"]
    for place, word in enumerate(asked.words):
        if place in hidden:
            shift += 0 if word.mask else mask_length - (word.end - word.start)
        else:
            starts.append(word.start + shift)
    return starts


def filled_in(asked: Asked) -> list[tuple[str, bool]]:
    """Return the sentence with each mask's first answer, as (text, whether it is an answer)."""
    parts: list[tuple[str, bool]] = []
    end = len(asked.masked)
    for mask in reversed(asked.masks):
        answer = mask["candidates"][0]["text"]
        before = asked.masked[: mask["start"]].rstrip()
        filled = answer[: len(answer) - (len(asked.masked) - mask["end"])]
        token = filled[len(before) :]
        spaces = token[: len(token) - len(token.lstrip())]
        parts += [(asked.masked[mask["end"] : end], False), (token.lstrip(), True), (spaces, False)]
        end = len(before)
    parts.append((asked.masked[:end], False))
    return [part for part in reversed(parts) if part[0]]


def strength(influences: Sequence[Influence]) -> np.ndarray:
    """Return each word's shade, -1 to 1: the effect, relative to the largest, or to 1 where all are smaller."""
    effects = np.array([each.effect for each in influences])
    return effects / max(1.0, float(np.abs(effects).max(initial=0.0)))
