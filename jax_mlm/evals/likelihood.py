"""Pseudo-log-likelihoods: masked copies of many texts in a few fixed shapes, scored on the device.

The pseudo-log-likelihood (PLL) of a text is Σ ln p(token | the other tokens), where each token is hidden in a copy of
its own. Every token counts, unknown ones with the probability of the unknown token, but for special tokens. There are
two ways to hide:

- `original`: the token alone (Salazar et al. 2020, "Masked Language Model Scoring").
- `word-l2r`: the token and the later ones of its word (Kauf & Ivanova 2023, "A Better Way to Do Masked Language Model
  Scoring"), since the pieces of a word give each other away.

A word is what whole-word masking takes for one: a run of letters, digits, marks and underscores between white space and
punctuation, found by the offsets of the tokens in the text, so that the pre-tokenizer makes no difference and none is
needed. In scripts without spaces, and in runs of more than `LONGEST_WORD` characters, each token is its own word.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig
from jax_mlm.data.encoding import word_starts
from jax_mlm.data.tokenizer import Vocabulary, as_text, rust, vocabulary_of
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import make_forward
from jax_mlm.model.ops.dense import cross_entropy

Method = Literal["original", "word-l2r"]
LONGEST_WORD = 40
"""Characters of a word: a longer run of letters is a protein or the like (`mlm_onnx.answer.words` has the same)."""
TOKENS_A_ROW, TOKENS_A_ROW_OF_AN_ACCELERATOR = 64, 2048
"""Tokens of masked copies that are computed at once, for each row of --batch."""
LOGITS_AT_ONCE = 1 << 28
CHARACTERS_A_TOKEN = 16
"""Characters of text that are scored together, for each of these tokens: batches that are not full are few then."""
UNDER_WAY = 2
"""Batches that the device computes while the next one is laid out."""


Item = TypeVar("Item")


class Score(NamedTuple):
    """The pseudo-log-likelihood of a text by each method, in nats, and the tokens that it sums over."""

    pll: dict[Method, float]
    tokens: int
    unknown: int
    """How many of them are the unknown token, and how many words or parts of one have no token at all (`left_out`)."""


class Read(NamedTuple):
    """Tokenised texts, one after the other, each with its frame of special tokens."""

    tokens: Int[np.ndarray, " T"]
    ends: Int[np.ndarray, " T"]
    """Where the word of each token ends."""
    framing: Bool[np.ndarray, " T"]
    first: Int[np.ndarray, " texts+1"]
    """Where each text begins, its frame included."""
    inner: Int[np.ndarray, "texts 2"]
    """Where each text begins and ends without its frame."""
    left_out: Sequence[int]
    """How many words or parts of one have no token, in each text."""


Scorer = Callable[[Sequence[str]], list[Score]]


def make_scorer(
    tokenizer: Tokenizer, config: ModelConfig, params: Params, methods: Sequence[Method], at_once: int
) -> Scorer:
    """Return `score(texts)`, in float32; what else is scored with a text changes its score by rounding alone.

    Texts of the same tokens get the same score, to the last bit. A token of a text that is longer than the model's
    window is scored in a window around it, the one in which `mlm_onnx.FillMask` scores it. `at_once` is the number of
    tokens in a batch.
    """
    vocabulary, reader = vocabulary_of(tokenizer), as_text(tokenizer)
    unknown = -1 if vocabulary.unk is None else vocabulary.unk
    special = np.setdiff1d(vocabulary.special, unknown)
    params = jax.device_put(params)

    def score(texts: Sequence[str]) -> list[Score]:
        read = read_texts(reader, texts)
        same_as = _first_alike(read)
        once = np.repeat(same_as == np.arange(len(texts)), np.diff(read.first))
        at = np.flatnonzero(once & ~read.framing & ~np.isin(read.tokens, special))
        until = {"original": at + 1, "word-l2r": read.ends[at]}
        size = len(read.tokens) + 1
        asked = np.concatenate([at * size + until[method] for method in methods])
        distinct, of_asked = np.unique(asked, return_inverse=True)
        found = Copies(read, *np.divmod(distinct, size)).scored(config, params, vocabulary, at_once)
        by_method = found[of_asked].reshape(len(methods), len(at)).astype(np.float64)
        bounds = np.searchsorted(at, read.first)

        def of(text: int) -> Score:
            mine = slice(bounds[text], bounds[text + 1])
            pll: dict[Method, float] = {
                method: math.fsum(each[mine]) for method, each in zip(methods, by_method, strict=True)
            }
            return Score(pll, len(at[mine]), int((read.tokens[at[mine]] == unknown).sum()) + read.left_out[text])

        return [of(text) for text in same_as]

    return score


@partial(jax.jit, static_argnums=0)
def log_probs(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    sizes: Int[Array, " B"],
    at: Int[Array, " B"],
    targets: Int[Array, " B"],
) -> Float[Array, " B"]:
    """Return ln p(target) at one position of each row, of which the first `size` tokens are a text.

    The logits never leave the device.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    inputs = Inputs(tokens, (positions < sizes[:, None]).astype(jnp.int32), positions)
    return -cross_entropy(make_forward(config)(params, inputs, at[:, None])[:, 0], targets)


def tokens_at_once(batch: int) -> int:
    """Return how many tokens are computed at once, where the rows of a batch are as many as usual."""
    return batch * (TOKENS_A_ROW if jax.default_backend() == "cpu" else TOKENS_A_ROW_OF_AN_ACCELERATOR)


def in_parts(items: Iterable[Item], characters_of: Callable[[Item], int], characters: int) -> Iterator[list[Item]]:
    """Yield the items in order, in lists of about so many characters."""
    part: list[Item] = []
    size = 0
    for item in items:
        part.append(item)
        size += characters_of(item)
        if size >= characters:
            yield part
            part, size = [], 0
    if part:
        yield part


# ---- texts to tokens, and tokens to words ---------------------------------------------------------


def read_texts(reader: Tokenizer, texts: Sequence[str]) -> Read:
    """Tokenise texts as they are, with the frame that the tokenizer puts around each."""
    encodings = rust(reader.encode_batch, list(texts))
    lengths = np.array([len(each) for each in encodings], np.int64)
    total, first = int(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])
    pairs = chain.from_iterable(chain.from_iterable(each.offsets for each in encodings))
    offsets = np.fromiter(pairs, np.int64, 2 * total).reshape(-1, 2)
    framing = np.fromiter(chain.from_iterable(each.special_tokens_mask for each in encodings), bool, total)
    inside = np.concatenate([[0], np.cumsum(~framing)])  # number of tokens before each position that are not a frame's
    inner = np.searchsorted(inside, np.stack([inside[first[:-1]] + 1, inside[first[1:]]], 1)) - [1, 0]
    return Read(
        np.fromiter(chain.from_iterable(each.ids for each in encodings), np.int32, total),
        word_ends(list(texts), lengths, offsets),
        framing,
        first,
        inner,
        [left_out(text, each.offsets) for text, each in zip(texts, encodings, strict=True)],
    )


def left_out(text: str, offsets: Iterable[tuple[int, int]]) -> int:
    """Return how many words, or parts of one, no token covers: some tokenizers leave out what they do not know."""
    count = covered = 0
    for start, end in (*offsets, (len(text), len(text))):
        if start > covered and not text[covered:start].isspace():
            count += sum(any(map(str.isalnum, word)) for word in text[covered:start].split())
        if end > covered:
            covered = end
    return count


def word_ends(texts: list[str], lengths: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return for each token the position after the last one of its word; arguments as `word_starts` has them.

    Tokens that cover no character are words of their own.
    """
    ends = np.arange(1, len(offsets) + 1)
    at = np.flatnonzero(offsets[:, 0] < offsets[:, 1])
    if not len(at):
        return ends
    text_of = np.repeat(np.arange(len(texts)), lengths)[at]
    start, end = offsets[at].T
    begins = word_starts(texts, np.bincount(text_of, minlength=len(texts)), offsets[at])
    word = np.cumsum(begins) - 1
    first, last = np.flatnonzero(begins), np.append(np.flatnonzero(begins)[1:], len(at)) - 1
    long = end[last] - start[first] > LONGEST_WORD
    begins[1:] |= long[word[1:]] & (start[1:] >= end[:-1])
    word, last = np.cumsum(begins) - 1, np.append(np.flatnonzero(begins)[1:], len(at)) - 1
    ends[at] = at[last[word]] + 1
    return ends


def _first_alike(read: Read) -> np.ndarray:
    """Return for each text the first one that has the same tokens and words."""
    seen: dict[tuple[bytes, bytes], int] = {}
    bounds = itertools.pairwise(read.first.tolist())
    keys = ((read.tokens[a:b].tobytes(), (read.ends[a:b] - a).tobytes()) for a, b in bounds)
    return np.array([seen.setdefault(key, text) for text, key in enumerate(keys)], np.int64)


# ---- masked copies to batches ---------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """Copies of texts, in each of which the tokens from one position on are hidden, and that position is asked."""

    read: Read
    at: Int[np.ndarray, " N"]
    until: Int[np.ndarray, " N"]
    """Where the hidden tokens end."""

    def scored(
        self, config: ModelConfig, params: Params, vocabulary: Vocabulary, at_once: int
    ) -> Float[np.ndarray, " N"]:
        """Return ln p of the token at the position of each copy, computed in batches of copies of similar length."""
        first = self.read.first
        text = np.searchsorted(first, self.at, "right") - 1
        widths = np.minimum(width_of(first[text + 1] - first[text]), config.max_length)
        found = np.zeros(len(self.at), np.float32)
        under_way: deque[tuple[np.ndarray, Array]] = deque()

        def take() -> None:
            chosen, result = under_way.popleft()
            found[chosen] = np.asarray(result)[: len(chosen)]

        for width in np.unique(widths):
            members = np.flatnonzero(widths == width)
            rows = max(1, min(at_once // int(width), LOGITS_AT_ONCE // config.vocab_size))
            for start in range(0, len(members), rows):
                chosen = members[start : start + rows]
                batch = self.batch(np.resize(chosen, rows), text, int(width), config.max_length, vocabulary)
                under_way.append((chosen, log_probs(config, params, *batch)))
                if len(under_way) > UNDER_WAY:
                    take()
        while under_way:
            take()
        return found

    def batch(
        self, chosen: np.ndarray, text: np.ndarray, width: int, longest: int, vocabulary: Vocabulary
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows of some copies: tokens, sizes, the positions asked about and the tokens hidden there.

        A text that is longer than the model's window is read in the window whose middle is the position, or as near to
        it as the ends of the text allow; its frame is around each window.
        """
        read, at, until = self.read, self.at[chosen, None], self.until[chosen, None]
        begin, end = read.first[text[chosen], None], read.first[text[chosen] + 1, None]
        first, last = read.inner[text[chosen], :1], read.inner[text[chosen], 1:]
        before, after = first - begin, end - last
        room = longest - before - after
        seen = np.minimum(room, last - first)
        window = np.minimum(np.maximum(first, at - room // 2), last - seen)
        column, size = np.arange(width), before + seen + after
        shift = np.where(column < before, begin, np.where(column < before + seen, window - before, end - size))
        source = column + shift
        tokens = np.where(column < size, read.tokens[np.minimum(source, end - 1)], vocabulary.pad)
        tokens[(source >= at) & (source < until)] = vocabulary.mask
        asked = (at - window + before)[:, 0]
        return tokens, size[:, 0].astype(np.int32), asked.astype(np.int32), read.tokens[at[:, 0]]


def width_of(sizes: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Return the length of the rows that hold texts of some sizes: 8, 12, 16, 24, 32, 48 and so on."""
    power = 2 ** np.ceil(np.log2(np.maximum(sizes, 8))).astype(np.int64)
    return np.where((sizes <= power * 3 // 4) & (power > 8), power * 3 // 4, power)
