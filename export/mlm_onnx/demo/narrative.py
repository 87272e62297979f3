"""Turn measurements into plain sentences, and state nothing that was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from mlm_onnx.demo.facts import DEPENDS, Influence, Together, Why

NAMED, UNKNOWN_SHOWN = 2, 5
"""Most words to name one by one: those an answer depends on, and those that the model does not know."""
ATTENTION = (
    "Attention shows where a head looks, not why the model answers as it does: a head can look at a word that changes "
    "nothing. What an answer depends on was measured above, by hiding words."
)


def percent(probability: float) -> str:
    """Format a probability, never rounding it to 100 % or 0 %."""
    if probability >= 0.99995:
        return "over 99.99 %"
    if probability < 0.0001:
        return "under 0.01 %"
    share = 100 * probability
    return f"{share:.2f} %" if share >= 99 or share < 1 else f"{share:.1f} %"


def quoted(word: str) -> str:
    return f"“{word}”"


def confidence(why: Why) -> str:
    """Compare the answer with the runner-up."""
    answer = f"{quoted(why.token)} gets {percent(why.probability)}"
    if why.runner_up is None:
        return f"{answer}; no other word can be chosen."
    second = f"the runner-up {quoted(why.runner_up)} {percent(why.runner_up_probability)}"
    ratio = why.probability / max(why.runner_up_probability, 1e-12)
    if ratio >= 10:
        times = f"{float(f'{ratio:.1g}'):,.0f}" if ratio < 1e5 else "over 100,000"
        return f"{answer}, {second}: about {times} times less."
    if ratio >= 1.25:
        return f"{answer}, {second}: {ratio:.1f} times less."
    return f"{answer}, {second}: nearly as much, so the model hardly prefers one."


def original(why: Why) -> str:
    """Return the rank of the hidden word among all words; empty if the text itself held the mask."""
    if why.original is None:
        return ""
    word = quoted(why.original.text)
    if not why.original.known:
        return f"The hidden word {word} is not in the model's vocabulary, so it cannot be the answer."
    if why.rank is None:
        pieces = len(why.original.ids)
        reason = f"is {pieces} pieces in the model's vocabulary" if pieces > 1 else "is not a word of its own there"
        return f"The hidden word {word} {reason}, and a mask takes exactly one, so it has no rank."
    if why.rank == 1:
        return f"The hidden word was {word}: rank 1 of {why.choices:,}, the answer is right."
    return (
        f"The hidden word was {word}: rank {why.rank:,} of {why.choices:,}, with {percent(why.original_probability)}."
    )


def depends_on(why: Why) -> list[str]:
    """Return the words without which the answer loses most, one by one and together."""
    if not why.influences:
        return []
    ranked = sorted(why.influences, key=lambda each: -each.effect)
    losing = [each for each in ranked if each.effect >= DEPENDS][:NAMED]
    if not losing:
        weakest = min(why.influences, key=lambda each: each.probability)
        return [
            f"It depends on no single word: whichever other one is hidden, {quoted(why.token)} keeps at least "
            f"{percent(weakest.probability)} (without {_named(why, weakest)})."
        ]
    sentences = [f"It depends most on {_listed([_named(why, each) for each in losing])}."]
    sentences += [_without(why, each) for each in losing]
    return sentences if why.together is None else [*sentences, together(why, why.together)]


def speaks_against(why: Why) -> str:
    """Return the word without which the answer gains most; empty if the gain is not worth mentioning."""
    gain = min(why.influences, key=lambda each: each.effect, default=None)
    if gain is None or gain.effect > -DEPENDS:
        return ""
    return (
        f"{_named(why, gain)} speaks against it: without that word {quoted(why.token)} rises from "
        f"{percent(why.probability)} to {percent(gain.probability)}."
    )


def together(why: Why, both: Together) -> str:
    """Return what the answer becomes when the words it depends on are hidden together."""
    words = "both" if len(both.words) == 2 else "all of them"
    share = percent(both.probability) if both.exact else f"at most {percent(both.probability)}"
    if both.instead == why.token:
        return f"Without {words}, {quoted(why.token)} still comes first, with {share}."
    return (
        f"Without {words}, {quoted(why.token)} has {share}, and {quoted(both.instead)} comes first with "
        f"{percent(both.instead_probability)}."
    )


def explanation(why: Why) -> list[str]:
    """Return everything that was measured about one answer, one sentence each."""
    sentences = [confidence(why), original(why), *depends_on(why), speaks_against(why)]
    if why.window is not None:
        sentences.append(
            f"The text is longer than the model reads at once: for this answer it saw characters {why.window[0]:,} to "
            f"{why.window[1]:,} of it."
        )
    return [sentence for sentence in sentences if sentence]


def unknown(words: Sequence[str]) -> str:
    """Return a line about words that the model cannot read; empty if there are none."""
    if not words:
        return ""
    each = [quoted(word) for word in dict.fromkeys(words)]
    shown = (
        each if len(each) <= UNKNOWN_SHOWN else [*each[: UNKNOWN_SHOWN - 1], f"{len(each) - UNKNOWN_SHOWN + 1} more"]
    )
    return (
        f"The model does not know {_listed(shown)}: it reads {'it as a blank' if len(each) == 1 else 'them as blanks'}."
    )


def _without(why: Why, each: Influence) -> str:
    fall = f"Without {_named(why, each)}, {quoted(why.token)} falls from {percent(why.probability)} to "
    if each.instead == why.token:
        return f"{fall}{percent(each.probability)}, and still comes first."
    return f"{fall}{percent(each.probability)}, and {quoted(each.instead)} comes first instead."


def _named(why: Why, each: Influence) -> str:
    """Return the quoted word, with its position if the same word occurs more than once."""
    alone = sum(other.word == each.word for other in why.influences) == 1
    return quoted(each.word) if alone else f"{quoted(each.word)} (word {each.position + 1})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
