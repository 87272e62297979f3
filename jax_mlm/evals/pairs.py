"""Minimal pairs: two sentences that differ in what makes one of them wrong, and which one a model finds likelier.

The files are BLiMP's (Warstadt et al. 2020): JSON lines with `sentence_good` and `sentence_bad`, and perhaps the names
of the paradigm (`UID`) and of the phenomenon (`linguistics_term`). A pair is right if the good sentence has the
strictly higher pseudo-log-likelihood; a tie is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_mlm.config import Json
from jax_mlm.data.labels import records, sound
from jax_mlm.errors import UserError, nearest
from jax_mlm.evals.likelihood import Method, Score, Scorer, in_parts

GOOD, BAD, PARADIGM, PHENOMENON = "sentence_good", "sentence_bad", "UID", "linguistics_term"


class Pair(NamedTuple):
    """A good sentence and a bad one."""

    where: str
    """File and line, for messages."""
    good: str
    bad: str
    paradigm: str
    """Its UID; the name of its file, if it has none."""
    phenomenon: str
    """Empty if the file does not tell."""
    row: Mapping[str, object]
    """The fields of the file, for predictions to echo."""


class Judged(NamedTuple):
    """A pair with the scores of its sentences."""

    pair: Pair
    good: Score
    bad: Score

    @property
    def unknown(self) -> int:
        """Number of unknown tokens in both sentences."""
        return self.good.unknown + self.bad.unknown

    def margin(self, method: Method) -> float:
        """Return by how much the good sentence is likelier, in nats."""
        return self.good.pll[method] - self.bad.pll[method]


def read_pairs(named: Sequence[str]) -> list[Pair]:
    """Return the pairs of files, and of every *.jsonl in folders.

    Raises:
        UserError: there is none, or a line lacks a sentence; names the line, and the key nearest to the missing one.
    """
    files = [file for name in named for file in _files(Path(name))]
    pairs = [_pair(file, where, fields) for file in files for where, fields in records(file, GOOD)]
    if not pairs:
        raise UserError(f"--pairs {' '.join(named)}: there is no pair in it")
    return pairs


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(f"--pairs {path}: no *.jsonl in this folder")
    return files


def _pair(file: Path, where: str, fields: Mapping[str, object]) -> Pair:
    good, bad = (_text(where, fields, name) for name in (GOOD, BAD))
    paradigm, phenomenon = (_text(where, fields, name) if fields.get(name) else "" for name in (PARADIGM, PHENOMENON))
    return Pair(where, good, bad, paradigm or file.stem, phenomenon, fields)


def _text(where: str, fields: Mapping[str, object], name: str) -> str:
    if name not in fields:
        others = [other for other in fields if other not in (GOOD, BAD)]
        has = ", ".join(others[:20]) or "none"
        raise UserError(f"{where}: no key {name!r} (other keys: {has}){nearest(name, others)}")
    value = fields[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} holds {type(value).__name__}, not text")
    if not value.strip():
        raise UserError(f"{where}: {name!r} is empty")
    return sound(value, where)


def judge(score: Scorer, pairs: Sequence[Pair], characters: int) -> Iterator[Judged]:
    """Yield the pairs with the scores of their sentences, which are computed for so many characters at a time.

    Raises:
        UserError: the tokenizer has no token for a sentence; names its line.
    """
    for chosen in in_parts(pairs, lambda pair: len(pair.good) + len(pair.bad), characters):
        scores = iter(score([text for pair in chosen for text in (pair.good, pair.bad)]))
        for pair, good, bad in zip(chosen, scores, scores, strict=True):
            if not (good.tokens and bad.tokens):
                name = BAD if good.tokens else GOOD
                raise UserError(f"{pair.where}: the run's tokenizer makes no token of {name!r}: remove the pair")
            yield Judged(pair, good, bad)


def pair_figures(judged: Sequence[Judged], methods: Sequence[Method]) -> Json:
    """Return the share of pairs that are right by each method: of all, as the mean over paradigms, and of each group.

    `accuracy` is by the last method, which `method` names. Pairs without a UID count under the name of their file.
    """
    by_method = {method: _figures(judged, method) for method in methods}
    return {
        "pairs": len(judged),
        "method": methods[-1],
        "accuracy": by_method[methods[-1]]["accuracy"],
        "unknown": {"pairs": sum(each.unknown > 0 for each in judged), "tokens": sum(each.unknown for each in judged)},
        "methods": by_method,
    }


def _figures(judged: Sequence[Judged], method: Method) -> Json:
    paradigms = _by_group(judged, method, lambda pair: pair.paradigm)
    mean = sum(group["accuracy"] for group in paradigms.values()) / len(paradigms)
    phenomena = _by_group(judged, method, lambda pair: pair.phenomenon)
    return {**_tally(judged, method), "mean": mean, PARADIGM: paradigms, PHENOMENON: phenomena}


def _by_group(judged: Sequence[Judged], method: Method, name: Callable[[Pair], str]) -> dict[str, Json]:
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        groups.setdefault(name(each.pair), []).append(each)
    return {group: _tally(groups[group], method) for group in sorted(filter(None, groups))}


def _tally(judged: Sequence[Judged], method: Method) -> Json:
    margins = [each.margin(method) for each in judged]
    return {
        "pairs": len(judged),
        "accuracy": sum(margin > 0 for margin in margins) / len(judged),
        "ties": sum(margin == 0 for margin in margins),
        "unknown": sum(each.unknown > 0 for each in judged),
    }


def pair_lines(judged: Iterable[Judged], methods: Sequence[Method]) -> Iterator[Json]:
    """Yield each pair's row with its scores, as `--predictions` holds them."""
    for each in judged:
        scores = {
            method: {"good": each.good.pll[method], "bad": each.bad.pll[method], "right": each.margin(method) > 0}
            for method in methods
        }
        yield {**each.pair.row, "scores": scores, "unknown": each.unknown}
