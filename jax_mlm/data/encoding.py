"""Text to token ids and word starts, here or in worker processes.

The workers are plain subprocesses that import neither the caller's main module nor jax: they start in a fraction of a
second, whatever the parent holds, and need no `if __name__ == "__main__"` in it.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
import unicodedata
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import as_text, rust
from jax_mlm.errors import UserError
from jax_mlm.signals import SIGNALS

BATCH = 1 << 18
"""Characters encoded in one call: it bounds the memory that the tokenizer's offsets take."""
WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from jax_mlm.data.encoding import serve; serve()"
UNSPACED = (
    *((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Tibetan; Burmese; Khmer
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),  # radicals; kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Han
)
"""Scripts written without spaces: a run of their letters is not one word, so each token there is its own."""
JOINERS = "_\u200c\u200d"
"""What stands inside words without being a letter: the underscore, and the zero-width joiners of Persian and Indic."""
OTHER, WORD, SPACE, UNSEEN = range(4)
_kinds = np.full(0x110000, UNSEEN, np.uint8)


class Encoded(NamedTuple):
    """The tokens of some texts, one after the other."""

    tokens: np.ndarray
    begins: np.ndarray
    """Whether each token begins a word."""
    lengths: np.ndarray
    """Tokens of each text."""


@runtime_checkable
class Texts(Protocol):
    """What is encoded as one piece of work."""

    @property
    def texts(self) -> list[str]: ...


T = TypeVar("T", bound=Texts)


def encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """Encode data: what looks like a special token in it is text, but for the unknown one."""
    return encode_with(as_text(tokenizer), texts)


def encode_with(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """Encode without a frame, and find by the offsets which tokens begin a word."""
    parts = [_encode(tokenizer, batch) for batch in _batches(texts)]
    return Encoded(*map(np.concatenate, zip(*parts, strict=True)))


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch or not texts:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    encodings = rust(tokenizer.encode_batch, texts, add_special_tokens=False)
    lengths = np.fromiter(map(len, encodings), np.int64, len(texts))
    total = int(lengths.sum())
    tokens = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.uint32, total)
    pairs = chain.from_iterable(encoding.offsets for encoding in encodings)
    offsets = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * total).reshape(-1, 2)
    return Encoded(tokens, word_starts(texts, lengths, offsets), lengths)


def word_starts(texts: list[str], lengths: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return which tokens begin a word, for any tokenizer: only offsets are used.

    A token goes on with the word of the one before it if it shares a character with that one (bytes of one character),
    or if it directly follows it and the characters that touch are letters, digits, marks or underscores. A lone space
    belongs to the word that follows it.

    Args:
        texts: the texts, encoded one after the other.
        lengths: tokens of each text.
        offsets: [tokens, 2] begin and end of each token, in characters of its own text.
    """
    begins = np.ones(len(offsets), bool)
    if len(offsets) < 2:
        return begins
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    start, end = (offsets + np.repeat(np.cumsum(sizes) - sizes, lengths)[:, None]).T
    kind = _classify(np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32))
    first = kind[np.minimum(start, len(kind) - 1)]
    last = kind[np.maximum(end - 1, 0)]
    width = end - start
    blank = (width == 0) | ((width == 1) & (last == SPACE))
    follows = (start[1:] <= end[:-1]) & (width[1:] > 0) & (first[1:] == WORD) & ((last[:-1] == WORD) | blank[:-1])
    shares = (start[1:] < end[:-1]) & (width[1:] > 0)
    begins[1:] = ~(follows | shares)
    heads = np.cumsum(lengths) - lengths
    begins[heads[lengths > 0]] = True
    return begins


def _classify(codes: np.ndarray) -> np.ndarray:
    """OTHER, WORD or SPACE for each code point; what has been seen is looked up."""
    kind = _kinds[codes]
    if (kind == UNSEEN).any():
        for code in np.unique(codes[kind == UNSEEN]).tolist():
            _kinds[code] = _kind(code)
        kind = _kinds[codes]
    return kind


def _kind(code: int) -> int:
    character = chr(code)
    if character == " ":
        return SPACE
    if any(low <= code <= high for low, high in UNSPACED):
        return OTHER
    return WORD if character.isalnum() or character in JOINERS or unicodedata.category(character)[0] == "M" else OTHER


# Worker processes


def encode_in_order(
    work: Iterable[T], tokenizer: Tokenizer, content: str, workers: int
) -> Generator[tuple[T, Encoded], None, None]:
    """Encode each piece of work, in order and with few pieces under way at any time.

    Args:
        work: what to encode.
        tokenizer: encodes in this process, where there are 0 workers.
        content: the same tokenizer serialised, which is what workers are given.
        workers: processes to start.
    """
    if workers == 0:
        for item in work:
            yield item, encode_with(tokenizer, item.texts)
        return
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    crew: list[Worker] = []
    under_way: deque[tuple[T, Future[Encoded]]] = deque()
    threads = ThreadPoolExecutor(workers, "encoding")

    def call(texts: list[str]) -> Encoded:
        worker = idle.get()
        try:
            return worker(texts)
        finally:
            idle.put(worker)

    try:
        for _ in range(workers):
            crew.append(Worker(content))
            idle.put(crew[-1])
        for item in work:
            under_way.append((item, threads.submit(call, item.texts)))
            if len(under_way) > 2 * workers:
                item, future = under_way.popleft()
                yield item, future.result()
        while under_way:
            item, future = under_way.popleft()
            yield item, future.result()
    finally:
        for _, future in under_way:
            future.cancel()
        for worker in crew:
            worker.stop()
        threads.shutdown()


class Worker:
    """A process that encodes what it is sent."""

    def __init__(self, tokenizer: str) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, json.dumps(sys.path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )  # in a group of its own, where Ctrl-C does not reach it
        self._send(tokenizer)

    def _send(self, message: str | list[str]) -> None:
        assert self.process.stdin is not None
        pickle.dump(message, self.process.stdin, pickle.HIGHEST_PROTOCOL)
        self.process.stdin.flush()

    def __call__(self, texts: list[str]) -> Encoded:
        assert self.process.stdout is not None
        try:
            self._send(texts)
            answer = pickle.load(self.process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            self.process.kill()
            raise MemoryError(
                f"a tokenising process ended early (exit status {self.process.wait()}), as it does if memory "
                "runs out; what was tokenised is kept"
            ) from error
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str) and "MemoryError" in answer:
            raise MemoryError("a tokenising process ran out of it")
        if isinstance(answer, str):
            raise RuntimeError(f"a tokenising process failed:\n{answer}")
        tokens, begins, lengths = answer
        return Encoded(tokens, np.unpackbits(begins, count=len(tokens)).view(bool), lengths)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            with suppress(OSError):
                pipe.close()


def serve() -> None:
    """Serve as a worker: a tokenizer and lists of texts on stdin, arrays on stdout; end with the parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write among the answers
    with suppress(EOFError, BrokenPipeError):
        tokenizer = Tokenizer.from_str(pickle.load(requests))
        small = tokenizer.get_vocab_size() <= 1 << 16
        while True:
            texts = pickle.load(requests)
            try:
                tokens, begins, lengths = encode_with(tokenizer, texts)
                tokens = tokens.astype(np.uint16) if small and tokens.max(initial=0) < 1 << 16 else tokens
                answer: tuple[np.ndarray, ...] | UserError | str = (tokens, np.packbits(begins), lengths)
            except UserError as error:
                answer = error
            except Exception:  # nothing is lost: the parent raises what it reads here
                answer = traceback.format_exc()
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
