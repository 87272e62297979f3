"""The next values, made in a thread while the last one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic

from jax_mlm.data.batches import T


class prefetch(Generic[T]):
    """Makes the next values in a thread while the last is used; an error is raised where its value is due.

    An iterator, and a context manager that ends the thread.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], depth: int = 2) -> None:
        self._make, self._steps, self._depth = make, iter(steps), depth
        self._due: deque[Future[T]] = deque()
        self._thread = ThreadPoolExecutor(1, "prefetch")

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while len(self._due) <= self._depth and (step := next(self._steps, None)) is not None:
            self._due.append(self._thread.submit(self._make, step))
        if not self._due:
            self.close()
            raise StopIteration
        return self._due.popleft().result()

    def close(self) -> None:
        """Drop what is under way; harmless when done twice."""
        self._thread.shutdown(cancel_futures=True)
        self._due.clear()

    def __enter__(self) -> prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
